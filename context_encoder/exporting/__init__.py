"""Trained networks as files for other programs: ONNX, and programs of torch.export."""

from context_encoder.exporting.export import Exported, ExportError, export_network

__all__ = ["ExportError", "Exported", "export_network"]
