"""``python -m gpuward_supervisor``: the same as ``gpuward``."""

from __future__ import annotations

import sys

from gpuward_supervisor.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
