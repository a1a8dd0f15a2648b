"""The composition root: the one place where concrete things are built, joined, and taken apart again."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import structlog
import zmq

from gpuward_ipc.channel import ExecutorRouter
from gpuward_ipc.endpoints import link_endpoint
from gpuward_ipc.types import ExecutorName, Incarnation, SourceName
from gpuward_supervisor.bodies import Bodies
from gpuward_supervisor.config.node import NodeConfig
from gpuward_supervisor.core.commands import CloseSource
from gpuward_supervisor.core.decide import initial_state
from gpuward_supervisor.core.events import SupervisorEvent
from gpuward_supervisor.effects import Effects
from gpuward_supervisor.executor_link import ExecutorLink
from gpuward_supervisor.inlets import ExecutorInlet, JournalInlet, ProcessInlet, SignalInlet, SourceInlet
from gpuward_supervisor.journal import Journal, JournalError
from gpuward_supervisor.loop import Loop
from gpuward_supervisor.mailbox import Mailbox
from gpuward_supervisor.outbox import Outbox
from gpuward_supervisor.output_relay import OutputRelay
from gpuward_supervisor.processes import open_files
from gpuward_supervisor.processes import runtime_dir as folder
from gpuward_supervisor.processes.base import Launch
from gpuward_supervisor.processes.posix import PosixProcessHost
from gpuward_supervisor.processes.signals import Signals
from gpuward_supervisor.sources.base import Source
from gpuward_supervisor.sources.registry import build_source
from gpuward_supervisor.spawning import Spawning, engine_summary

#: How long the threads of sources may take to end after the core is done, in seconds.
JOIN_WITHIN_S = 2.0


def run(config: NodeConfig) -> int:
    """Run the supervisor until it is told to stop or cannot go on.

    Args:
        config: what to run; logs are configured already.

    Returns:
        Exit code: 0 for a requested stop, 1 for a failure.
    """
    log = structlog.get_logger("gpuward")
    # Before anything is started: a signal that comes now is kept until the loop runs.
    signals = Signals()
    with ExitStack() as stack:
        stack.callback(signals.close)
        try:
            node = _build(config, signals, stack, log)
        except (JournalError, OSError, zmq.ZMQError) as error:
            log.error("node.cannot_run", error=str(error), advice="see `gpuward check`")
            return 1
        try:
            return node.run()
        except Exception:
            # Whatever it is, it is a bug, and is told where the node's log is read.
            log.exception("node.crashed", advice="owed results are in the journal; start it again")
            return 1


class _Node(msgspec.Struct, frozen=True):
    """What has been built and is to be run."""

    loop: Loop
    source: Source
    source_name: SourceName
    outbox: Outbox
    log: structlog.BoundLogger

    def run(self) -> int:
        """Run until the end; returns the exit code."""
        self.source.start()
        try:
            code, _ = self.loop.run(self.outbox.recover())
        except BaseException:
            # Nobody reads any more what it brings: the queue shall know before all else is taken apart.
            self.source.send(CloseSource(source=self.source_name, within_s=0.0))
            self.source.join(JOIN_WITHIN_S)
            raise
        if not self.source.join(JOIN_WITHIN_S):
            self.log.warning("source.did_not_end", source=self.source_name, waited_s=JOIN_WITHIN_S)
        return code


def _build(config: NodeConfig, signals: Signals, stack: ExitStack, log: structlog.BoundLogger) -> _Node:
    """Build the node; what has to be taken apart again goes on the stack.

    Raises:
        JournalError: the state directory is somebody else's.
        OSError: the runtime directory cannot be used, or the limit on open files is too low.
        zmq.ZMQError: the executor link cannot be bound.
    """
    log.info(
        "node.starting",
        worker_id=config.casola.worker_id,
        executors=len(config.executors),
        state_dir=str(config.state_dir),
        runtime_dir=str(config.runtime_dir),
        config_file=None if config.file is None else str(config.file),
        pid=os.getpid(),
    )
    for setup in config.executors:
        log.info("node.executor", **engine_summary(setup))

    slots_max = max((setup.slots for setup in config.executors), default=0)
    open_files.ensure(open_files.needed(len(config.executors), slots_max))
    journal = Journal.open(config.state_dir)
    stack.callback(journal.close)
    host = PosixProcessHost(
        node=_node_id(config.state_dir),
        runtime_dir=config.runtime_dir,
        guardian_fds=() if journal.lock_fd is None else (journal.lock_fd,),
    )
    stack.callback(host.close)
    transit = _transit_dir(config)
    stack.callback(shutil.rmtree, transit, ignore_errors=True)
    bodies = Bodies(transit / "bodies")
    outbox = Outbox(journal, bodies)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stack.callback(context.destroy, 0)
    endpoint = link_endpoint(config.runtime_dir)
    router = ExecutorRouter(context, endpoint)
    stack.callback(router.close)
    spawning = Spawning(config, endpoint, transit, os.environ)
    link = ExecutorLink(router, bodies, host.pid_of, spawning.spool_of)

    def launch(executor: ExecutorName, incarnation: Incarnation) -> Launch:
        # Not `or`: both may be gone.
        if any([folder.restore(config.runtime_dir, host.tag), router.restore()]):
            log.warning("runtime_dir.restored", runtime_dir=str(config.runtime_dir), reason="it was deleted")
        return spawning.launch(executor, incarnation)

    mailbox: Mailbox[SupervisorEvent] = Mailbox()
    stack.callback(mailbox.close)
    source = build_source(config.casola, bodies, mailbox.post, mailbox.post_all, mailbox.__len__)
    effects = Effects(
        link=link,
        host=host,
        launch_of=launch,
        sources={config.casola.name: source},
        outbox=outbox,
        bodies=bodies,
        heartbeat_s=config.policy.heartbeat_s,
    )
    relay = OutputRelay(log.bind(), time.monotonic)

    def swept(executor: ExecutorName, incarnation: Incarnation) -> None:
        relay.finish(executor, incarnation)
        spawning.forget(executor, incarnation)

    state = initial_state(config.policy, secrets.randbits(64))
    loop = Loop(
        state,
        effects,
        [
            SignalInlet(signals, host.reap_adopted),
            # Before the ends of processes: what an executor said is heard before its death is.
            ExecutorInlet(link, router.socket),
            ProcessInlet(host, relay.relay, swept),
            SourceInlet(mailbox),
            JournalInlet(outbox),
        ],
    )
    return _Node(loop, source, config.casola.name, outbox, log)


def _transit_dir(config: NodeConfig) -> Path:
    """Fresh folder for bodies on their way; beside the journal, so that files move there without a copy.

    Where the state directory cannot be written it lies in the runtime directory: jobs go on.
    """
    preferred = config.state_dir / "transit"
    shutil.rmtree(preferred, ignore_errors=True)
    try:
        preferred.mkdir(mode=0o700, parents=True)
    except OSError:
        return config.runtime_dir / "transit"
    return preferred


def _node_id(state_dir: Path) -> str:
    """Id of a state directory, the same in every life of its supervisor."""
    return hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:12]
