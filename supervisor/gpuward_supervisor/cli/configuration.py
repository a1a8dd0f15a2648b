"""How commands get at the configuration, and how a person is told what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gpuward_supervisor.cli.command import complain
from gpuward_supervisor.errors import ConfigInvalid, GpuwardError

if TYPE_CHECKING:
    from gpuward_supervisor.config.node import NodeConfig


def load_or_complain(file: str | None) -> NodeConfig | int:
    """The node's configuration, or an exit code after the reasons went to standard error.

    Args:
        file: value of ``--config``; None when it was not given.
    """
    from gpuward_health.gpu import list_gpus
    from gpuward_supervisor.config.load import load

    try:
        return load(Path(file) if file is not None else None, os.environ, list_gpus)
    except ConfigInvalid as error:
        number = len(error.problems)
        head = f"gpuward: the configuration has {number} problem{'' if number == 1 else 's'}:"
        complain([head, *(f"  {problem.text()}" for problem in error.problems)])
        if error.warnings:  # one of them is often the reason: a required variable whose name was mistyped
            complain([f"  warning: {text}" for text in error.warnings])
        return error.exit_code
    except GpuwardError as error:
        complain([f"gpuward: {error}"])
        return error.exit_code
