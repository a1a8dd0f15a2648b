"""The supervisor's shell without processes and queue: recording fakes for these two, all else real."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import zmq

from gpuward_ipc import messages
from gpuward_ipc.channel import ExecutorRouter, SupervisorLink
from gpuward_ipc.types import ExecutorName, Incarnation, SourceName
from gpuward_supervisor.bodies import Bodies
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events as e
from gpuward_supervisor.effects import Effects
from gpuward_supervisor.executor_link import ExecutorLink
from gpuward_supervisor.journal import Journal
from gpuward_supervisor.mailbox import Mailbox
from gpuward_supervisor.outbox import Outbox
from gpuward_supervisor.processes.base import Exit, Launch, ProcessEvent, Swept
from gpuward_supervisor.sources.base import SourceCommand, SourceSnapshot

CASOLA = SourceName("casola")
GPU0 = ExecutorName("gpu0")
GPU1 = ExecutorName("gpu1")
ONE = Incarnation(1)
#: Bound of every wait in seconds.
PATIENCE_S = 30.0
#: More than any disk has free: a journal that wants to leave so much cannot add anything.
NO_ROOM_BYTES = 1 << 60


class RecordedHost:
    """A process host without processes: a spawn succeeds at once, a kill brings the end and the sweep."""

    def __init__(self) -> None:
        self._happened: Mailbox[ProcessEvent] = Mailbox()
        self.launched: list[Launch] = []
        self.killed: list[tuple[ExecutorName, Incarnation]] = []
        #: Raised by the next spawns.
        self.refusal: OSError | None = None
        #: What ``next_deadline`` says.
        self.due_s: float | None = None
        #: The times at which somebody collected.
        self.collected_at_s: list[float] = []
        self._pids: dict[tuple[ExecutorName, Incarnation], int] = {}

    def happen(self, *happened: ProcessEvent) -> None:
        """Let something come to be collected; any thread."""
        self._happened.post_all(happened)

    def spawn(self, launch: Launch) -> int:
        if self.refusal is not None:
            raise self.refusal
        self.launched.append(launch)
        # The test's own: it is the peer of every socket that it connects itself.
        self._pids[launch.executor, launch.incarnation] = os.getpid()
        return os.getpid()

    def kill(self, executor: ExecutorName, incarnation: Incarnation) -> None:
        self.killed.append((executor, incarnation))
        self.end(executor, incarnation, signal=9)

    def end(self, executor: ExecutorName, incarnation: Incarnation, *, signal: int | None = None) -> None:
        """Let an incarnation end and be swept."""
        pid = self._pids.pop((executor, incarnation), 0)
        code = None if signal is not None else 0
        self.happen(Exit(executor, incarnation, pid, code, signal), Swept(executor, incarnation, 0))

    def terminate(self, executor: ExecutorName, incarnation: Incarnation) -> None:
        self.end(executor, incarnation, signal=15)

    def pid_of(self, executor: ExecutorName, incarnation: Incarnation) -> int | None:
        return self._pids.get((executor, incarnation))

    def tail(self, executor: ExecutorName, incarnation: Incarnation) -> Sequence[str]:
        return []

    def fileno(self) -> int:
        return self._happened.fileno()

    def collect(self, now_s: float) -> list[ProcessEvent]:
        self.collected_at_s.append(now_s)
        if self.due_s is not None and self.due_s <= now_s:
            self.due_s = None
        return self._happened.take()

    def next_deadline(self) -> float | None:
        return self.due_s

    def kill_all(self, within_s: float) -> int:
        return 0

    def close(self) -> None:
        self._happened.close()


class RecordedSource:
    """A source without a queue: keeps the commands, ends when it is told to close."""

    def __init__(self, post: Callable[[e.SupervisorEvent], None]) -> None:
        self._post = post
        self.sent: list[SourceCommand] = []
        #: Called with each command before it counts as sent.
        self.on_send: Callable[[SourceCommand], None] = lambda _: None

    def start(self) -> None:
        """Nothing runs here."""

    def send(self, command: SourceCommand) -> None:
        self.on_send(command)
        self.sent.append(command)
        if isinstance(command, do.CloseSource):
            self._post(e.SourceClosed(source=command.source))

    def join(self, timeout_s: float) -> bool:
        return True

    def snapshot(self) -> SourceSnapshot:
        raise NotImplementedError("nobody asks a recorded source how it is")

    def kinds(self) -> list[type[SourceCommand]]:
        """Kinds of the commands, in order."""
        return [type(command) for command in self.sent]


class Shell:
    """Journal, bodies, executor link and effects of one supervisor, with a recorded host and source."""

    def __init__(self, folder: Path, *, journal_works: bool = True, window: int = 10_000) -> None:
        """Build it.

        Args:
            folder: private folder of the test.
            journal_works: False for a disk without room.
            window: messages that may wait for one executor.
        """
        self.folder = folder
        self.state_dir = folder / "state"
        self.journal = Journal.open(self.state_dir, min_free_bytes=0 if journal_works else NO_ROOM_BYTES)
        self.bodies = Bodies(folder / "bodies")
        self.outbox = Outbox(self.journal, self.bodies)
        self.mailbox: Mailbox[e.SupervisorEvent] = Mailbox()
        self.host = RecordedHost()
        self.source = RecordedSource(self.mailbox.post)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.endpoint = f"ipc://{folder}/s"
        self.router = ExecutorRouter(self.context, self.endpoint, window)
        self.link = ExecutorLink(self.router, self.bodies, self.host.pid_of, lambda *_: folder / "spool")
        self.effects = WatchedEffects(
            link=self.link,
            host=self.host,
            launch_of=self.launch_of,
            sources={CASOLA: self.source},
            outbox=self.outbox,
            bodies=self.bodies,
            heartbeat_s=2.5,
        )
        self._peers: list[SupervisorLink] = []

    def launch_of(self, executor: ExecutorName, incarnation: Incarnation) -> Launch:
        """A start of nothing in particular."""
        return Launch(executor=executor, incarnation=incarnation, argv=("true",), env={})

    def perform(self, *decided: do.SupervisorCommand) -> list[e.SupervisorEvent]:
        """Perform commands as one turn."""
        return self.effects.perform(decided)

    def peer(self, executor: ExecutorName = GPU0, incarnation: Incarnation = ONE) -> SupervisorLink:
        """An executor's end of the link, not known to be connected yet."""
        peer = SupervisorLink(self.context, self.endpoint, executor, incarnation)
        self._peers.append(peer)
        return peer

    def connected(self, executor: ExecutorName = GPU0, incarnation: Incarnation = ONE) -> SupervisorLink:
        """An executor's end of the link, with which messages can be exchanged."""
        peer = self.peer(executor, incarnation)
        peer.send(messages.Goodbye())
        assert self.router.socket.poll(int(PATIENCE_S * 1000))
        assert self.link.receive() == []
        return peer

    def close(self) -> None:
        """Take everything apart."""
        for peer in self._peers:
            peer.flush_and_close(0)
        self.router.close()
        self.context.destroy(0)
        self.mailbox.close()
        self.host.close()
        self.journal.close()


class WatchedEffects(Effects):
    """The real effects, with a note of every turn."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        #: What was performed, turn by turn.
        self.turns: list[list[do.SupervisorCommand]] = []

    def perform(self, decided: Iterable[do.SupervisorCommand]) -> list[e.SupervisorEvent]:
        turn = list(decided)
        self.turns.append(turn)
        return super().perform(turn)


def next_messages(peer: SupervisorLink, count: int) -> list[tuple[messages.FromSupervisor, bytes | None]]:
    """The next messages that an executor gets, with their bodies; waits for all of them."""
    poller = zmq.Poller()
    poller.register(peer.fileno(), zmq.POLLIN)
    taken: list[tuple[messages.FromSupervisor, bytes | None]] = []
    while len(taken) < count:
        while not peer.readable():
            assert poller.poll(int(PATIENCE_S * 1000)), f"got {taken}, waited for {count}"
        taken += peer.receive()
    assert len(taken) == count, f"expected {count} messages, got {taken}"
    return taken
