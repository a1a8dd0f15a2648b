"""Reads the configuration once: file, environment over it, all of it resolved; or every problem at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gpuward_health.samples import GpuInventory
from gpuward_ipc.types import SourceName
from gpuward_supervisor.config.casola_settings import casola_settings
from gpuward_supervisor.config.directories import absolute, runtime_dir, state_dir
from gpuward_supervisor.config.environment import overlay
from gpuward_supervisor.config.executor_setups import executor_setups
from gpuward_supervisor.config.findings import Findings
from gpuward_supervisor.config.node import ExecutorSetup, NodeConfig
from gpuward_supervisor.config.placement import Placing
from gpuward_supervisor.config.schema import CASOLA_NOT_USED_YET, ConfigFile
from gpuward_supervisor.config.visible_gpus import VisibleGpus, visible_gpus
from gpuward_supervisor.config.walk import sound_part
from gpuward_supervisor.core.policy import ExecutorPlan, Policy
from gpuward_supervisor.errors import ConfigInvalid, GpusUnknown
from gpuward_supervisor.secrets import Secret, checked_secret, read_secret_file

#: An executor reports by itself that its engine takes too long; the supervisor's own limit only backs it up.
_START_SLACK_S = 30.0


def load(path: Path | None, environ: Mapping[str, str], inventory: Callable[[], GpuInventory]) -> NodeConfig:
    """Make the configuration of this node.

    Args:
        path: the file; None to use the one that ``GPUWARD_CONFIG`` names, or none at all.
        environ: the environment; it wins over the file.
        inventory: lists the machine's GPUs; called once at most, and only when a setting needs to know.

    Raises:
        ConfigInvalid: something is wrong; it carries every problem.
        GpusUnknown: there is an NVIDIA driver that does not tell its GPUs, and the configuration needs them.
    """
    if path is None and environ.get("GPUWARD_CONFIG", "").strip():
        path = Path(environ["GPUWARD_CONFIG"].strip())
    findings = Findings(str(path) if path is not None else "")
    tree = _read(path, findings) if path is not None else {}
    overlay(tree, environ, findings)
    tree = sound_part(tree, ConfigFile, findings)
    config = msgspec.convert(tree, ConfigFile)
    _note_unused(tree, findings)

    hidden = path.parent if path is not None else Path()
    home = environ.get("HOME")

    def place(key: tuple[str, ...], text: str | None) -> Path | None:
        """A path of the configuration: relative to the file it stands in, or to the working directory."""
        if text is None:
            return None
        base = Path() if findings.given(key) else hidden
        return absolute(text, Path(os.path.abspath(base)), home)

    hf_token = _secret(
        "HF_TOKEN", ("executors", "hf_token_file"), config.executors.hf_token_file, place, environ, findings
    )
    token = _secret(
        "CASOLA_API_TOKEN",
        ("source", "casola", "token_file"),
        config.source.casola.token_file,
        place,
        environ,
        findings,
    )
    casola = casola_settings(config, token or Secret(""), environ, findings)
    state = state_dir(place(("node", "state_dir"), config.node.state_dir), environ, findings)
    runtime = runtime_dir(place(("node", "runtime_dir"), config.node.runtime_dir), state, environ, findings)
    placing = Placing(_once(inventory, environ, findings), findings)
    executors, capacity_max = executor_setups(config, tree, placing, findings)
    _compare(config, findings)
    if findings.problems:
        raise ConfigInvalid(findings.problems, findings.warnings)
    return NodeConfig(
        file=path,
        name=config.node.name or casola.worker_id,
        state_dir=state,
        runtime_dir=runtime,
        log_level=config.node.log_level,
        log_format=config.node.log_format,
        casola=casola,
        policy=_policy(config, executors, capacity_max, casola.name),
        executors=executors,
        hf_token=hf_token,
        warnings=tuple(findings.warnings),
        notes=tuple(findings.notes),
    )


def _read(path: Path, findings: Findings) -> dict[str, Any]:
    import tomllib  # a node that is configured by its environment alone does without

    try:
        # Some editors begin a file with a byte-order mark, which TOML does not know.
        return tomllib.loads(path.read_text(encoding="utf-8").removeprefix("\ufeff"))
    except OSError as error:
        reason = error.strerror or str(error)
        findings.refuse(
            (), None, f"cannot be read: {reason}", "check the path given by --config or GPUWARD_CONFIG"
        )
    except UnicodeDecodeError as error:
        findings.refuse(
            (), None, f"is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        )
    except tomllib.TOMLDecodeError as error:
        findings.refuse((), None, f"is not TOML: {error}")
    except RecursionError:
        findings.refuse((), None, "is nested too deeply to be read")
    return {}


def _note_unused(tree: dict[str, Any], findings: Findings) -> None:
    for key in tree.get("source", {}).get("casola", {}):
        path = ("source", "casola", key)
        if key in CASOLA_NOT_USED_YET and not findings.given(path):
            findings.notes.append(f"{findings.name_of(path)} is accepted, but nothing uses it yet")


def _secret(
    variable: str,
    key: tuple[str, ...],
    file: str | None,
    place: Callable[[tuple[str, ...], str | None], Path | None],
    environ: Mapping[str, str],
    findings: Findings,
) -> Secret | None:
    """A secret from its variable, or else from its file; the variable wins, as everywhere."""
    if value := environ.get(variable, "").strip():
        try:
            return checked_secret(value)
        except ValueError as error:
            findings.refuse_variable(variable, value, str(error))
            return None
    path = place(key, file)
    if path is None:
        return None
    try:
        return read_secret_file(path)
    except OSError as error:
        findings.refuse(
            key, None, f"{path} cannot be read: {error.strerror or error}", "check path, owner and mode"
        )
    except ValueError as error:
        findings.refuse(
            key, None, f"{path} holds no usable secret: {error}", "write the secret into it, and nothing else"
        )
    return None


def _once(
    inventory: Callable[[], GpuInventory], environ: Mapping[str, str], findings: Findings
) -> Callable[[], VisibleGpus]:
    known: list[VisibleGpus] = []

    def visible() -> VisibleGpus:
        if not known:
            found = inventory()
            if found.error and not found.gpus:
                raise GpusUnknown(
                    f"the GPUs of this machine cannot be listed: {found.error}; to start without them, set "
                    'executors.gpus = "none" or GPUWARD_GPUS=none'
                )
            if found.error:
                findings.warn(f"the list of GPUs is not complete: {found.error}")
            known.append(visible_gpus(found, environ))
            if known[0].gpus and known[0].remark:
                findings.warn(known[0].remark)
        return known[0]

    return visible


def _compare(config: ConfigFile, findings: Findings) -> None:
    """The settings that must fit each other."""
    restarts, executors, limits = config.restarts, config.executors, config.limits
    if restarts.backoff_first_s > restarts.backoff_max_s:
        findings.refuse(
            ("restarts", "backoff_first_s"),
            restarts.backoff_first_s,
            f"expected at most restarts.backoff_max_s = {restarts.backoff_max_s:g}",
        )
    if executors.heartbeat_timeout_s < 2 * executors.heartbeat_s:
        findings.refuse(
            ("executors", "heartbeat_timeout_s"),
            executors.heartbeat_timeout_s,
            f"expected at least twice executors.heartbeat_s = {executors.heartbeat_s:g}",
        )
    if limits.upload_threshold_bytes > limits.inline_result_max_bytes:
        findings.refuse(
            ("limits", "upload_threshold_bytes"),
            limits.upload_threshold_bytes,
            f"expected at most limits.inline_result_max_bytes = {limits.inline_result_max_bytes}",
        )


def _policy(
    config: ConfigFile, executors: tuple[ExecutorSetup, ...], capacity_max: int | None, source: SourceName
) -> Policy:
    node, restarts, dispatch, limits = config.node, config.restarts, config.dispatch, config.limits
    engines = [executor.engine for executor in executors]
    return Policy(
        executors=tuple(ExecutorPlan(name=executor.name, slots=executor.slots) for executor in executors),
        sources=(source,),
        attempts_max=dispatch.attempts_max,
        transient_wait_s=dispatch.transient_wait_s,
        lease_renew_s=dispatch.lease_renew_s,
        backoff_first_s=restarts.backoff_first_s,
        backoff_max_s=restarts.backoff_max_s,
        backoff_jitter=restarts.backoff_jitter,
        backoff_reset_s=restarts.backoff_reset_s,
        restart_intensity=restarts.intensity,
        restart_period_s=restarts.period_s,
        hello_timeout_s=config.executors.hello_timeout_s,
        start_timeout_s=max(engine.start_timeout_s for engine in engines) + _START_SLACK_S,
        heartbeat_s=config.executors.heartbeat_s,
        heartbeat_timeout_s=config.executors.heartbeat_timeout_s,
        reassign_after_s=dispatch.reassign_after_s,
        shutdown_grace_s=node.shutdown_grace_s,
        engine_stop_s=max(engine.stop_grace_s for engine in engines),
        source_close_s=node.source_close_s,
        capacity_settle_s=dispatch.capacity_settle_s,
        reregister_min_s=dispatch.reregister_min_s,
        upload_threshold_bytes=limits.upload_threshold_bytes,
        inline_result_max_bytes=limits.inline_result_max_bytes,
        outbox_max=limits.outbox_max,
        job_notes=node.job_notes,
        capacity_max=capacity_max,
    )
