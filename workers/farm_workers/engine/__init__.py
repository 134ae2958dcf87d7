"""Continuous batching for aMUSEd; importing it loads neither ray nor redis."""

from farm_workers.engine.engine import Engine
from farm_workers.engine.row import Preview, Result

__all__ = ["Engine", "Preview", "Result"]
