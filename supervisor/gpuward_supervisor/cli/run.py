"""``gpuward run``: the worker itself, the entrypoint of a container."""

from __future__ import annotations

import argparse

from gpuward_supervisor.cli.command import Command, add_config_option
from gpuward_supervisor.cli.configuration import load_or_complain

_EXAMPLES = """\
examples:
  gpuward run --config node.toml
  CASOLA_WS_URL=wss://queue.example CASOLA_CONFIG_ID=my-model gpuward run

SIGTERM or SIGINT asks for an orderly stop: no new jobs, running ones finish within the grace period, results
are delivered. A second one means now. `gpuward check` tells what would run.

exit codes: 0 a stop that was asked for, 1 a failure, 2 a configuration that was refused
"""


def _run(options: argparse.Namespace) -> int:
    config = load_or_complain(options.config)
    if isinstance(config, int):
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

    return run(config)


COMMAND = Command(
    words=("run",),
    summary="Run the worker: one executor per GPU, jobs from the queue.",
    examples=_EXAMPLES,
    add_options=add_config_option,
    run=_run,
)
