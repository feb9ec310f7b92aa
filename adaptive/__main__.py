"""`python -m adaptive_window` is the command `adaptive-window`."""

import sys

from .cli import main

sys.exit(main())
