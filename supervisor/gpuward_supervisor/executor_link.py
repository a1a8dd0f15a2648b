"""The executor link as the loop sees it: messages of executors become events, commands become messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from gpuward_ipc import messages
from gpuward_ipc.channel import ExecutorRouter, Received
from gpuward_ipc.types import (
    INLINE_BODY_MAX_BYTES,
    PROTOCOL_VERSION,
    ExecutorName,
    Fault,
    Incarnation,
)
from gpuward_supervisor.bodies import Bodies, SpoolFile
from gpuward_supervisor.core import events
from gpuward_supervisor.core.commands import SendAssign


class ExecutorLink:
    """Translates between the ROUTER and the core's vocabulary; owned by the loop."""

    def __init__(
        self,
        router: ExecutorRouter,
        bodies: Bodies,
        pid_of: Callable[[ExecutorName, Incarnation], int | None],
        spool_of: Callable[[ExecutorName, Incarnation], Path],
    ) -> None:
        """Wire it up.

        Args:
            router: the bound socket.
            bodies: where bodies are kept.
            pid_of: pid of the process that was spawned as this incarnation, None when there is none.
            spool_of: spool folder of an incarnation; result files elsewhere are refused.
        """
        self._router = router
        self._bodies = bodies
        self._pid_of = pid_of
        self._spool_of = spool_of
        #: Messages from processes that are not the incarnation they claim to be.
        self.impostors = 0

    def receive(self) -> list[events.SupervisorEvent]:
        """Events of the messages that are ready; bounded, so that other inputs get their turn."""
        received: list[events.SupervisorEvent] = []
        for message in self._router.receive():
            event = self._event(message)
            if event is not None:
                received.append(event)
        return received

    def assign(self, command: SendAssign) -> bool:
        """Send a run with its payload; False when the incarnation is not connected or the payload is gone."""
        body = self._bodies.get(command.body)
        if body is None:
            return False
        if isinstance(body, bytes) and len(body) > INLINE_BODY_MAX_BYTES:
            # Sources spool large payloads themselves; this one came from elsewhere.
            body = self._bodies.spill(command.body)
        if isinstance(body, SpoolFile):
            path, size, frame = str(body.path), body.size_bytes, None
        else:
            path, size, frame = "", len(body), body
        return self._router.send(
            command.executor,
            command.incarnation,
            messages.Assign(
                command.run,
                command.job_id,
                command.task,
                command.config_id,
                command.attempt,
                path,
                size,
                command.transient,
            ),
            frame,
        )

    def send(
        self, executor: ExecutorName, incarnation: Incarnation, message: messages.FromSupervisor
    ) -> bool:
        """Send a message without a body; False when the incarnation is not connected."""
        return self._router.send(executor, incarnation, message)

    def _event(self, received: Received) -> events.SupervisorEvent | None:
        name, incarnation, message = received.executor, received.incarnation, received.message
        match message:
            case messages.Succeeded():
                return self._succeeded(received, message)
            case messages.Heartbeat():
                return events.ExecutorBeat(
                    executor=name,
                    incarnation=incarnation,
                    seq=message.seq,
                    runs=message.runs,
                    slots=message.slots,
                    phase=message.phase,
                )
            case messages.Failed():
                return events.RunFailed(
                    executor=name,
                    incarnation=incarnation,
                    run=message.run,
                    error=message.error,
                    fault=message.fault,
                )
            case messages.Cancelled():
                return events.RunCancelled(executor=name, incarnation=incarnation, run=message.run)
            case messages.Progressed():
                return events.RunProgressed(
                    executor=name,
                    incarnation=incarnation,
                    run=message.run,
                    progress=message.progress,
                    status_message=message.status_message,
                )
            case messages.Ready():
                return events.ExecutorReady(
                    executor=name,
                    incarnation=incarnation,
                    slots=message.slots,
                    engine_version=message.engine_version,
                )
            case messages.Hello():
                return self._hello(received, message)
            case messages.EngineExited():
                return events.EngineDied(
                    executor=name,
                    incarnation=incarnation,
                    detail=message.detail,
                    permanent=message.permanent,
                )
            case messages.Goodbye():
                # The exit of the process says the same, and is the authority.
                return None
            case _:
                assert_never(message)

    def _hello(self, received: Received, hello: messages.Hello) -> events.SupervisorEvent | None:
        name, incarnation = received.executor, received.incarnation
        pid = self._pid_of(name, incarnation)
        # The kernel's word for the sender's pid counts, the message's own only where the kernel is silent.
        claimed = received.peer_pid or hello.pid
        if pid is None or claimed != pid or (hello.executor, hello.incarnation) != (name, incarnation):
            self.impostors += 1
            return None
        if hello.protocol != PROTOCOL_VERSION:
            return events.ExecutorRefused(
                executor=name,
                incarnation=incarnation,
                error=(
                    f"executor speaks link protocol {hello.protocol} (gpuward {hello.version or 'unknown'}), "
                    f"the supervisor {PROTOCOL_VERSION}; install the same gpuward version for both"
                ),
            )
        return events.ExecutorConnected(executor=name, incarnation=incarnation, version=hello.version)

    def _succeeded(self, received: Received, message: messages.Succeeded) -> events.SupervisorEvent:
        name, incarnation = received.executor, received.incarnation
        try:
            if message.body_path:
                path = Path(message.body_path)
                if path.parent != self._spool_of(name, incarnation):
                    raise OSError("the result file is not in the executor's spool folder")
                body = self._bodies.adopt_file(path, message.body_bytes)
            elif received.body is not None:
                body = self._bodies.put(received.body)
            else:
                raise OSError("the result has no body")
        except OSError as error:
            return events.RunFailed(
                executor=name,
                incarnation=incarnation,
                run=message.run,
                error=f"result of the run is unusable: {error.strerror or error}",
                fault=Fault.ENGINE,
            )
        return events.RunSucceeded(
            executor=name,
            incarnation=incarnation,
            run=message.run,
            body=body,
            body_bytes=message.body_bytes,
        )
