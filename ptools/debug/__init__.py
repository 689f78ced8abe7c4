"""The line that made the first NaN, and both lines of an in-place bug."""

from ptools.debug.engine import debug_script
from ptools.debug.findings import Finding, Place, TensorStats
from ptools.debug.report import DebugReport

__all__ = ["DebugReport", "Finding", "Place", "TensorStats", "debug_script"]
