"""The door of ``python -m gpuward_executors``."""

import os
import sys

from gpuward_executors.app import main

if __name__ == "__main__":
    code = main(os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is flushed and closed: an interpreter that tidies up would only delay the supervisor.
    os._exit(code)
