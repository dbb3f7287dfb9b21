"""One report type, and one renderer per format; importing this loads no renderer."""

from .model import SCHEMA, Estimate, Report, Score

__all__ = ["SCHEMA", "Estimate", "Report", "Score"]
