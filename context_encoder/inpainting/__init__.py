"""Filling holes in images of any size, with a trained network or without."""

from context_encoder.data.mask_images import InpaintError, InputOptions
from context_encoder.inpainting.blending import remove_seam
from context_encoder.inpainting.hole_filler import FillReport, HoleFiller
from context_encoder.inpainting.inpainter import Inpainted, Inpainter, Report

__all__ = [
    "FillReport",
    "HoleFiller",
    "InpaintError",
    "Inpainted",
    "Inpainter",
    "InputOptions",
    "Report",
    "remove_seam",
]
