"""What an incarnation is started with: command line, environment, folders, and its start file."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from gpuward_ipc.endpoints import ENV_CONFIG, ENV_EXECUTOR, ENV_LINK, identity
from gpuward_ipc.startup import EngineKind, ExecutorStart, write_start
from gpuward_ipc.types import ExecutorName, Incarnation
from gpuward_supervisor.config.child_environment import executor_environment
from gpuward_supervisor.config.node import ExecutorSetup, NodeConfig, Pinning
from gpuward_supervisor.processes.base import Launch


class Spawning:
    """Prepares starts of the configured executors."""

    def __init__(
        self, config: NodeConfig, endpoint: str, transit_dir: Path, environ: Mapping[str, str]
    ) -> None:
        """Remember what all starts share.

        Args:
            config: the node's configuration.
            endpoint: ZeroMQ endpoint of the executor link.
            transit_dir: folder on the file system of the state directory, for bodies on their way.
            environ: the supervisor's own environment.
        """
        self._config = config
        self._endpoint = endpoint
        self._transit_dir = transit_dir
        self._setups = {setup.name: setup for setup in config.executors}
        self._environ = environ
        self._version = version("gpuward")

    def spool_of(self, executor: ExecutorName, incarnation: Incarnation) -> Path:
        """Folder in which an incarnation leaves large results."""
        return self._transit_dir / identity(executor, incarnation).decode()

    def launch(self, executor: ExecutorName, incarnation: Incarnation) -> Launch:
        """Make the folders and the start file of an incarnation, and say how to start it.

        Raises:
            OSError: a folder or the file cannot be made.
        """
        setup = self._setups[executor]
        tag = identity(executor, incarnation).decode()
        work_dir = self._config.runtime_dir / tag
        spool_dir = self.spool_of(executor, incarnation)
        for folder in (work_dir, spool_dir):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True)
        start_file = work_dir / "start.json"
        write_start(
            ExecutorStart(
                executor=executor,
                incarnation=incarnation,
                engine=setup.engine,
                slots=setup.slots,
                work_dir=str(work_dir),
                spool_dir=str(spool_dir),
                heartbeat_s=self._config.policy.heartbeat_s,
                log_level=self._config.log_level.value,
                gpus=setup.gpus,
                version=self._version,
            ),
            start_file,
        )
        return Launch(
            executor=executor,
            incarnation=incarnation,
            argv=(sys.executable, "-m", "gpuward_executors"),
            env={
                **executor_environment(self._config, setup, self._environ),
                ENV_EXECUTOR: tag,
                ENV_LINK: self._endpoint,
                ENV_CONFIG: str(start_file),
            },
            work_dir=work_dir,
        )

    def forget(self, executor: ExecutorName, incarnation: Incarnation) -> None:
        """Remove what ``launch`` made outside the working folder; that one goes with the sweep."""
        shutil.rmtree(self.spool_of(executor, incarnation), ignore_errors=True)


def engine_summary(setup: ExecutorSetup) -> dict[str, str | int]:
    """Facts of an executor for the log; nothing secret."""
    facts: dict[str, str | int] = {
        "executor": setup.name,
        "slots": setup.slots,
        "engine": setup.engine.kind.value,
        "gpus": ",".join(map(str, setup.gpus)) or ("none" if setup.pinning is Pinning.NO_GPU else "unpinned"),
    }
    if setup.engine.kind is not EngineKind.ECHO:
        facts["port"] = setup.engine.port
    return facts
