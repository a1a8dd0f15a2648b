"""``gpuward run``: the worker itself, the entrypoint of a container."""

from __future__ import annotations

import argparse
import signal
from types import FrameType
from typing import NoReturn

from gpuward_supervisor.cli.command import OK, Command, add_config_option
from gpuward_supervisor.cli.configuration import load_or_complain

_EXAMPLES = """\
examples:
  gpuward run --config node.toml
  CASOLA_WS_URL=wss://queue.example CASOLA_CONFIG_ID=my-model gpuward run

SIGTERM or SIGINT asks for an orderly stop: no new jobs, running ones finish within the grace period, results
are delivered. A second one means now. `gpuward check` tells what would run.

exit codes: 0 a stop that was asked for, 1 a failure, 2 a configuration that was refused
"""


#: Signals that ask for a stop.
_STOPS = (signal.SIGTERM, signal.SIGINT)


class _EarlyStop:
    """Takes a request to stop while there is no loop yet that could: as PID 1 it would be lost without."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {number: signal.signal(number, self._leave) for number in _STOPS}

    def _leave(self, _number: int, _frame: FrameType | None) -> NoReturn:
        # The flag, too: what is raised in a callback of an import is printed and forgotten.
        self.asked = True
        raise SystemExit(OK)

    def disarm(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _run(options: argparse.Namespace) -> int:
    early = _EarlyStop()
    config = load_or_complain(options.config)
    if isinstance(config, int):
        early.disarm()
        return config

    # Only now: structlog and the supervisor are not needed to refuse a configuration.
    from gpuward_supervisor import logs

    logs.configure(node=config.name, level=config.log_level, form=config.log_format, secrets=config.secrets())
    import structlog

    log = structlog.get_logger("gpuward")
    for warning in config.warnings:
        log.warning("config.warning", text=warning)
    for note in config.notes:
        log.info("config.note", text=note)

    from gpuward_supervisor.app import run

    if early.asked:
        return OK
    code = run(config)
    # The code is settled: one signal more must not change it while the interpreter takes itself apart.
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    return code


COMMAND = Command(
    words=("run",),
    summary="Run the worker: one executor per GPU, jobs from the queue.",
    examples=_EXAMPLES,
    add_options=add_config_option,
    run=_run,
)
