"""BN-free models for inference, proven equal."""

from ptools.fusion.engine import fuse
from ptools.fusion.report import FusionReport
from ptools.fusion.saved import load_fused, save_fused

__all__ = ["FusionReport", "fuse", "load_fused", "save_fused"]
