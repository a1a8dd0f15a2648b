"""``gpuward check``: what would run, without running it."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from gpuward_ipc.startup import EngineKind, EngineSpec
from gpuward_supervisor.cli.command import OK, Command, add_config_option
from gpuward_supervisor.cli.configuration import load_or_complain
from gpuward_supervisor.config.problems import one_line
from gpuward_supervisor.secrets import MASK, is_secret_name, without_secret_options

if TYPE_CHECKING:
    from gpuward_supervisor.config.node import ExecutorSetup, NodeConfig

_EXAMPLES = """\
examples:
  gpuward check --config node.toml
  gpuward check --json | python3 -m json.tool

Nothing is started and nothing is written; GPUs are listed where the configuration needs to know them.

exit codes: 0 it would run, 1 the GPUs do not answer, 2 the configuration was refused
"""


def _options(parser: argparse.ArgumentParser) -> None:
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _run(options: argparse.Namespace) -> int:
    config = load_or_complain(options.config)
    if isinstance(config, int):
        return config
    warnings = [*config.warnings, *missing_programs(config)]
    if options.json:
        text = msgspec.json.format(msgspec.json.encode(overview(config, warnings)), indent=2).decode()
    else:
        text = table(config, warnings, colours=_colours())
    print(text)
    return OK


def engine_command(engine: EngineSpec, gpus: Sequence[int] = ()) -> list[str]:
    """The command line that an executor will start its engine with; empty for none."""
    serve = ["serve", engine.model, "--host", engine.host, "--port", str(engine.port)]
    serve += ["--served-model-name", engine.served_model_name, *engine.extra_args]
    match engine.kind:
        case EngineKind.VLLM:
            return [engine.serve_command, *serve]
        case EngineKind.SIMULATED:
            return [sys.executable, "-m", "gpuward_executors.simulated", *serve]
        case EngineKind.COMMAND:
            return [_filled(word, engine, gpus) for word in engine.command]
        case EngineKind.ECHO:
            return []


def missing_programs(config: NodeConfig) -> list[str]:
    """A sentence for every engine program that is not there."""
    missing: dict[str, str] = {}
    for executor in config.executors:
        command = engine_command(executor.engine, executor.gpus)
        if command and shutil.which(command[0], path=executor.environment.get("PATH")) is None:
            missing.setdefault(command[0], executor.name)
    return [
        f"executor {name}: there is no program {program!r} on its PATH; install it, or name another one"
        for program, name in missing.items()
    ]


def overview(config: NodeConfig, warnings: Sequence[str]) -> dict[str, Any]:
    """Everything that `check` says, as plain values; nothing secret."""
    return {
        "file": None if config.file is None else str(config.file),
        "name": config.name,
        "state_dir": str(config.state_dir),
        "runtime_dir": str(config.runtime_dir),
        "log": {"level": config.log_level.value, "format": config.log_format.value},
        "source": {
            "url": config.casola.url,
            "config_id": config.casola.config_id,
            "worker_id": config.casola.worker_id,
            "token": bool(config.casola.token),
        },
        "capacity": capacity(config),
        "executors": [
            {
                "name": executor.name,
                "pinning": executor.pinning.value,
                "gpus": executor.gpus,
                "uuids": executor.uuids,
                "slots": executor.slots,
                "port": None if executor.engine.kind is EngineKind.ECHO else executor.engine.port,
                "engine": executor.engine.kind.value,
                "command": shown_command(executor),
                "environment": {
                    name: MASK if is_secret_name(name) else value
                    for name, value in executor.environment.items()
                },
            }
            for executor in config.executors
        ],
        "policy": {
            name: value
            for name, value in msgspec.structs.asdict(config.policy).items()
            if name not in {"executors", "sources"}
        },
        "warnings": list(warnings),
        "notes": list(config.notes),
    }


def table(config: NodeConfig, warnings: Sequence[str], *, colours: bool) -> str:
    """The same for a person."""
    strong = ("\x1b[1m", "\x1b[0m") if colours else ("", "")
    alert = ("\x1b[33m", "\x1b[0m") if colours else ("", "")
    casola = config.casola
    offered = capacity(config)
    facts = [
        ("configuration", str(config.file) if config.file is not None else "from the environment alone"),
        ("node", config.name),
        ("queue", f"{casola.url.rstrip('/')}/ws  {'with a token' if casola.token else 'without a token'}"),
        ("serves", f"{casola.config_id} as {casola.worker_id}"),
        ("capacity", f"{offered} job{'' if offered == 1 else 's'} at once"),
        ("state", str(config.state_dir)),
        ("runtime", str(config.runtime_dir)),
    ]
    rows = [("executor", "GPUs", "slots", "port", "engine")]
    rows += [
        (
            executor.name,
            gpu_text(executor),
            str(executor.slots),
            "-" if executor.engine.kind is EngineKind.ECHO else str(executor.engine.port),
            one_line(shown_command(executor)) or "none: jobs are answered with their own payload",
        )
        for executor in config.executors
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{name:<13}  {one_line(value)}" for name, value in facts]
    lines.append("")
    for number, row in enumerate(rows):
        line = "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[4]])
        lines.append(f"{strong[0]}{line}{strong[1]}" if number == 0 else line)
    lines.append("")
    lines += [f"{alert[0]}warning{alert[1]}: {one_line(text)}" for text in warnings]
    lines += [f"note: {one_line(text)}" for text in config.notes]
    lines.append("The configuration is sound. Nothing was started: `gpuward run` does that.")
    return "\n".join(lines)


def capacity(config: NodeConfig) -> int:
    """Jobs at once that the queue is offered when every executor is ready."""
    total = sum(executor.slots for executor in config.executors)
    return total if config.policy.capacity_max is None else min(total, config.policy.capacity_max)


def gpu_text(executor: ExecutorSetup) -> str:
    """Its GPUs for a person."""
    if executor.gpus:
        return ",".join(map(str, executor.gpus))
    return executor.uuids[0] if executor.uuids else executor.pinning.value.replace("_", " ")


def shown_command(executor: ExecutorSetup) -> str:
    """The engine's command line as it may be shown."""
    return without_secret_options(shlex.join(engine_command(executor.engine, executor.gpus)))


def _filled(word: str, engine: EngineSpec, gpus: Sequence[int]) -> str:
    values = {
        "host": engine.host,
        "port": str(engine.port),
        "model": engine.model,
        "served_model_name": engine.served_model_name,
        "gpus": ",".join(map(str, gpus)),
    }
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def _colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


COMMAND = Command(
    words=("check",),
    summary="Tell whether the configuration is sound, and what would run; start nothing.",
    examples=_EXAMPLES,
    add_options=_options,
    run=_run,
)
