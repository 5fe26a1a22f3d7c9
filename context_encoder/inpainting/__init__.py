"""Filling holes in images of any size with a trained network."""

from context_encoder.data.mask_images import InpaintError
from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.inpainter import Inpainted, Inpainter, Report

__all__ = ["InpaintError", "Inpainted", "Inpainter", "Report", "remove_seam"]
