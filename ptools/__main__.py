"""Entry point of `python -m ptools`."""

import sys

from ptools.cli import main

sys.exit(main())
