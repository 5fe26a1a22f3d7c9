"""What :mod:`context_encoder.evaluate` is made of: crops, fills, perceptual distance, tables."""
