"""The configuration as the program uses it: all resolved, nothing left to look up. Holds secrets, masked."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from gpuward_ipc.startup import EngineSpec
from gpuward_ipc.types import ExecutorName
from gpuward_supervisor.config.schema import LogFormat, LogLevel
from gpuward_supervisor.core.policy import Policy
from gpuward_supervisor.secrets import Secret
from gpuward_supervisor.sources.base import CasolaSettings


class Pinning(StrEnum):
    """What an executor sees of the machine's GPUs."""

    #: The GPUs that it was given, and no other.
    PINNED = "pinned"
    #: None.
    NO_GPU = "no_gpu"
    #: Whatever is there, as the supervisor sees it: the machine has no list of GPUs to choose from.
    UNPINNED = "unpinned"


class ExecutorSetup(msgspec.Struct, frozen=True, kw_only=True):
    """One executor of this node."""

    name: ExecutorName
    pinning: Pinning
    #: Indices in PCI bus order; empty for none and for a MIG device.
    gpus: tuple[int, ...] = ()
    #: UUIDs, in the same order; that of the MIG device where there is one.
    uuids: tuple[str, ...] = ()
    slots: int = 1
    engine: EngineSpec
    #: Ports from ``engine.port`` on that are this executor's own to use.
    ports: int = 1
    #: Environment variables added for the executor and its engine.
    environment: dict[str, str] = {}

    @property
    def visible_devices(self) -> str | None:
        """Value of ``CUDA_VISIBLE_DEVICES``; None to leave it as it is.

        Indices even where the configuration says UUIDs: vLLM reads numbers. A MIG device has none.
        """
        match self.pinning:
            case Pinning.UNPINNED:
                return None
            case Pinning.NO_GPU:
                return ""
            case Pinning.PINNED:
                return ",".join(map(str, self.gpus)) if self.gpus else ",".join(self.uuids)


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What this node runs."""

    #: The file that was read; None when the environment alone made the configuration.
    file: Path | None
    name: str
    #: Survives a restart; absolute.
    state_dir: Path
    #: Does not; absolute, short enough for a unix socket.
    runtime_dir: Path
    log_level: LogLevel
    log_format: LogFormat
    casola: CasolaSettings
    policy: Policy
    executors: tuple[ExecutorSetup, ...]
    #: For engines that load models.
    hf_token: Secret | None = None
    #: Worth a person's attention, but no reason not to start.
    warnings: tuple[str, ...] = ()
    #: Settings that were accepted and have no effect.
    notes: tuple[str, ...] = ()

    def secrets(self) -> tuple[Secret, ...]:
        """Every secret that the configuration holds, to be taken out of logs."""
        return tuple(secret for secret in (self.casola.token, self.hf_token) if secret)
