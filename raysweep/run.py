"""`python -m raysweep.run SPACE.yaml`: the main job. The same as `raysweep run SPACE.yaml`."""

from __future__ import annotations

import sys

from raysweep.commands.run import main

if __name__ == "__main__":
    sys.exit(main())
