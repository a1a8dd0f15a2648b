"""``python -m gpuward_devqueue``: the development queue from the command line."""

from __future__ import annotations

import sys

from gpuward_devqueue.cli import main

if __name__ == "__main__":
    sys.exit(main())
