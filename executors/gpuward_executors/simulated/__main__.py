"""The door of `python -m gpuward_executors.simulated`."""

import sys

from gpuward_executors.simulated.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
