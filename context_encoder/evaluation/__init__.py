"""Inpainting quality of networks and baselines: methods, metrics, tables."""
