"""Every environment variable that is read, and the setting that it is: a container needs no file at all.

A variable that is set but empty counts as not set, as the reference worker takes most of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from msgspec import inspect

from gpuward_ipc import endpoints
from gpuward_supervisor.config.findings import Findings
from gpuward_supervisor.config.problems import nearest
from gpuward_supervisor.config.schema import CASOLA_NOT_USED_YET, ConfigFile
from gpuward_supervisor.config.walk import type_at


class Use(StrEnum):
    """What becomes of a variable."""

    #: It is a setting of the file, and wins over it.
    SETTING = "setting"
    #: It is read where secrets, files or ids are settled; no key of the file stands for it.
    READ = "read"
    #: Accepted without effect: most of them have none in the reference worker either.
    IGNORED = "ignored"


class Variable(NamedTuple):
    """One row of the table."""

    name: str
    use: Use
    #: Path of the setting in the file, with dots.
    key: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        """Path of the setting."""
        return tuple(self.key.split("."))


_SETTINGS = {
    "CASOLA_WS_URL": "source.casola.url",
    "CASOLA_CONFIG_ID": "source.casola.config_id",
    "CASOLA_INSTANCE_ID": "source.casola.worker_id",
    "CASOLA_QUEUE_ID": "source.casola.queue_id",
    "CASOLA_CAPACITY": "source.casola.capacity",
    "CASOLA_API_TOKEN_FILE": "source.casola.token_file",
    "CASOLA_API_URL": "source.casola.api_url",
    "CASOLA_HEARTBEAT_INTERVAL": "source.casola.heartbeat_interval_s",
    "CASOLA_LOGS_URL": "source.casola.logs_url",
    "CASOLA_LOG_FLUSH_INTERVAL": "source.casola.log_flush_interval_s",
    "CASOLA_METRICS_URL": "source.casola.metrics_url",
    "CASOLA_BACKPRESSURE_CHECK_INTERVAL": "source.casola.backpressure_check_interval_s",
    "CASOLA_BACKPRESSURE_PAUSE_THRESHOLD": "source.casola.backpressure_pause_threshold",
    "CASOLA_BACKPRESSURE_RESUME_THRESHOLD": "source.casola.backpressure_resume_threshold",
    "CASOLA_EXPECTED_GPU_NAME": "source.casola.expected_gpu_name",
    "CASOLA_EXPECTED_VRAM_GB": "source.casola.expected_vram_gb",
    "CASOLA_SHUTDOWN_GRACE_PERIOD": "node.shutdown_grace_s",
    "VLLM_MODEL": "executors.engine.model",
    "VLLM_SERVED_MODEL_NAME": "executors.engine.served_model_name",
    "VLLM_HOST": "executors.engine.host",
    "VLLM_PORT": "executors.port_base",
    "VLLM_STARTUP_TIMEOUT": "executors.engine.start_timeout_s",
    "VLLM_EXTRA_ARGS": "executors.engine.extra_args",
    "VLLM_SERVE_COMMAND": "executors.engine.serve_command",
    "HF_TOKEN_FILE": "executors.hf_token_file",
    "GPUWARD_STATE_DIR": "node.state_dir",
    "GPUWARD_RUNTIME_DIR": "node.runtime_dir",
    "GPUWARD_LOG_LEVEL": "node.log_level",
    "GPUWARD_LOG_FORMAT": "node.log_format",
    "GPUWARD_ENGINE_KIND": "executors.engine.kind",
    "GPUWARD_GPUS": "executors.gpus",
    "GPUWARD_EXECUTOR_COUNT": "executors.count",
}
_READ = ("CASOLA_API_TOKEN", "HF_TOKEN", "CONTAINER_ID", "RUNPOD_POD_ID", "GPUWARD_CONFIG")
_IGNORED = (
    "CASOLA_MAX_JOBS", "CASOLA_LEASE_SECONDS", "CASOLA_RENEW_LEASE_AFTER", "CASOLA_CREATED_AT",
    "CASOLA_STREAM_INTERVAL_MS", "CASOLA_STREAM_INTERVAL_MAX_MS", "CASOLA_STREAM_RAMP_TOKENS",
    "CASOLA_SIMULATED_EXECUTION_TIME", "CASOLA_SIMULATED_ERROR_RATE",
)  # fmt: skip

#: The whole table, in the order of the documentation.
VARIABLES: Mapping[str, Variable] = {
    **{name: Variable(name, Use.SETTING, key) for name, key in _SETTINGS.items()},
    **{name: Variable(name, Use.READ) for name in _READ},
    **{name: Variable(name, Use.IGNORED) for name in _IGNORED},
}

#: Set by a supervisor for its own children; a supervisor that is started inside an executor inherits them.
_INTERNAL = frozenset({
    endpoints.ENV_EXECUTOR, endpoints.ENV_NODE, endpoints.ENV_LINK, endpoints.ENV_CONFIG,
    endpoints.ENV_DEATH_FD, endpoints.ENV_PARENT,
})  # fmt: skip


def overlay(tree: dict[str, Any], environ: Mapping[str, str], findings: Findings) -> None:
    """Write every setting that the environment makes into ``tree``, over what the file says.

    Args:
        tree: the file's content; changed in place.
        environ: the environment.
        findings: gets values that cannot be read, settings without effect, and unknown names.
    """
    for variable in VARIABLES.values():
        value = environ.get(variable.name, "")
        if not value.strip():
            continue
        if variable.use is Use.IGNORED:
            findings.notes.append(f"{variable.name} is accepted and has no effect")
        elif variable.use is Use.SETTING:
            _set(tree, variable, value, findings)
    _point_out_unknown(environ, findings)


def _set(tree: dict[str, Any], variable: Variable, text: str, findings: Findings) -> None:
    try:
        value = _read(variable, text)
    except ValueError as error:
        findings.refuse_variable(variable.name, text, f"expected {error}")
        findings.mark_refused(variable.path)
        return
    table = tree
    for key in variable.path[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            return  # the file has something else in place of the table; that is reported as the file's fault
    table[variable.path[-1]] = value
    findings.origins[variable.path] = variable.name
    if variable.path[:2] == ("source", "casola") and variable.path[-1] in CASOLA_NOT_USED_YET:
        findings.notes.append(f"{variable.name} is accepted, but nothing uses it yet")


def _read(variable: Variable, text: str) -> object:
    if variable.key == "executors.gpus":
        return read_gpus(text.strip())
    match type_at(ConfigFile, variable.path):
        case inspect.IntType():
            try:
                return int(text)
            except ValueError:
                raise ValueError("a whole number") from None
        case inspect.FloatType():
            try:
                return float(text)
            except ValueError:
                raise ValueError("a number") from None
        case inspect.EnumType():
            return text.strip().lower()
        case _:
            return text.strip()


def read_gpus(text: str) -> object:
    """GPUs as a variable says them: ``each``, ``none``, ``4``, ``0,2``, or ``0,1;2,3`` for groups.

    One number is a count, as in the file; ``0,`` is the list of GPU 0 alone.

    Raises:
        ValueError: it is none of these.
    """
    if text in {"each", "none"}:
        return text
    if text.isascii() and text.isdigit():
        return int(text)
    groups = [[_gpu(name) for name in part.split(",") if name.strip()] for part in text.split(";")]
    if not all(groups):
        raise ValueError("`each`, `none`, a number of GPUs, or a list such as `0,1` or `0,1;2,3`")
    return groups if ";" in text else groups[0]


def _gpu(name: str) -> int | str:
    name = name.strip()
    return int(name) if name.isascii() and name.isdigit() else name


def _point_out_unknown(environ: Mapping[str, str], findings: Findings) -> None:
    ours = [name for name in VARIABLES if name.startswith("GPUWARD_")]
    for name in sorted(environ.keys() - VARIABLES.keys() - _INTERNAL):
        if name.startswith("GPUWARD_"):
            meant = _meant(name)
            advice = f"did you mean {meant}?" if meant else f"known are {', '.join(ours)}"
            findings.warn(f"environment: {name} is not known; {advice}")
        elif name.startswith("CASOLA_") and (meant := _meant(name)):
            # Other programs may have such variables of their own: only a likely slip is pointed out.
            findings.warn(f"environment: {name} is not known; did you mean {meant}?")


def _meant(name: str) -> str | None:
    """The variable of the same prefix that was probably meant; the prefix itself makes none likelier."""
    prefix, _, rest = name.partition("_")
    found = nearest(rest, [known.partition("_")[2] for known in VARIABLES if known.startswith(f"{prefix}_")])
    return f"{prefix}_{found}" if found else None
