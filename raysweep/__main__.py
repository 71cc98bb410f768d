"""`python -m raysweep VERB …`."""

from __future__ import annotations

import sys

from raysweep.cli import main

if __name__ == "__main__":
    sys.exit(main())
