"""The page in the browser that fills holes: ``python -m context_encoder.demo``."""
