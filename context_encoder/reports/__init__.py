"""Reports as one HTML file each, which needs nothing else: tables, curves, sheets."""

from context_encoder.reports.chart import Series, line_chart
from context_encoder.reports.document import Cell, Document, Picture, Section, Table
from context_encoder.reports.naming import number, settings_section, short_names
from context_encoder.reports.training import training_sections
from context_encoder.reports.transfers import is_transfer, probe_sections, transfer_sections

__all__ = [
    "Cell",
    "Document",
    "Picture",
    "Section",
    "Series",
    "Table",
    "is_transfer",
    "line_chart",
    "number",
    "probe_sections",
    "settings_section",
    "short_names",
    "training_sections",
    "transfer_sections",
]
