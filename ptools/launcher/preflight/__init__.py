"""Whether this machine can train with several processes: asked before a script is."""

from ptools.launcher.preflight.report import PreflightReport
from ptools.launcher.preflight.run import run_preflight

__all__ = ["PreflightReport", "run_preflight"]
