"""Reports as one HTML file each, which needs nothing else: tables, curves, sheets."""

from context_encoder.reports.chart import Series, line_chart
from context_encoder.reports.document import Cell, Document, Picture, Section, Table
from context_encoder.reports.training import training_report

__all__ = [
    "Cell",
    "Document",
    "Picture",
    "Section",
    "Series",
    "Table",
    "line_chart",
    "training_report",
]
