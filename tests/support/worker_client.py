"""A worker reduced to its socket: sends what a test says, returns what the queue sent, hides nothing."""

from __future__ import annotations

import json
import os
import socket
import struct
from types import TracebackType
from typing import Any, Self

import websocket
from websocket import ABNF

Frame = dict[str, Any]


class WorkerClient:
    """One WebSocket to a queue.

    Args:
        ws_url: the queue's address without ``/ws``.
        token: bearer token to present; None = no header.
        timeout_s: how long any single receive may take before the test fails.
    """

    def __init__(self, ws_url: str, *, token: str | None = None, timeout_s: float = 5.0) -> None:
        self._waiting: list[Frame] = []
        self.ws = websocket.create_connection(
            ws_url + "/ws",
            timeout=timeout_s,
            header=[] if token is None else [f"Authorization: Bearer {token}"],
            enable_multithread=False,
        )

    @classmethod
    def registered(
        cls, ws_url: str, name: str = "w1", *, config_id: str = "default", capacity: int = 1
    ) -> Self:
        """Connect, register, and return when the queue has taken the registration in."""
        client = cls(ws_url)
        client.register(name, config_id=config_id, capacity=capacity)
        client.barrier()
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ sending

    def send(self, frame: Frame) -> None:
        self.ws.send(json.dumps(frame))

    def send_text(self, text: str) -> None:
        self.ws.send(text)

    def register(self, name: str = "w1", *, config_id: str = "default", capacity: int = 1) -> None:
        self.send({"type": "register", "worker_id": name, "config_id": config_id, "capacity": capacity})

    def result(self, job: Frame, result: object = None, *, fence: int | None = None) -> None:
        self.send(
            {
                "type": "job_result",
                "job_id": job["job_id"],
                "result": result,
                "fence_token": job["fence_token"] if fence is None else fence,
            }
        )

    def error(self, job: Frame, text: str) -> None:
        self.send(
            {"type": "job_error", "job_id": job["job_id"], "error": text, "fence_token": job["fence_token"]}
        )

    def result_ref(self, job: Frame) -> None:
        self.send({"type": "job_result_ref", "job_id": job["job_id"], "fence_token": job["fence_token"]})

    def progress(self, job: Frame, *, fence: int | None = None, **optional: object) -> None:
        token = job["fence_token"] if fence is None else fence
        self.send({"type": "job_progress", "job_id": job["job_id"], "fence_token": token, **optional})

    # ------------------------------------------------------------------ receiving

    def receive(self) -> Frame:
        """Return the next JSON frame; fails the test when none comes in time."""
        return self._waiting.pop(0) if self._waiting else self._read_frame()

    def receive_job(self) -> Frame:
        """Return the next frame, which must be a job."""
        frame = self.receive()
        assert frame["type"] == "job", frame
        return frame

    def barrier(self) -> list[Frame]:
        """Wait until the queue has acted on everything sent; return, and keep, the frames it sent."""
        mark = os.urandom(8)
        self.ws.ping(mark)
        while True:
            opcode, message = self.ws.recv_data_frame(control_frame=True)
            if opcode == ABNF.OPCODE_PONG and message.data == mark:
                return list(self._waiting)
            if opcode == ABNF.OPCODE_TEXT:
                self._waiting.append(json.loads(message.data))
            assert opcode != ABNF.OPCODE_CLOSE, f"closed: {message.data!r}"

    def receive_close(self) -> int | None:
        """Read to the end of the connection; return the close code, None when there was no close frame."""
        while True:
            try:
                opcode, message = self.ws.recv_data_frame(control_frame=True)
            except (websocket.WebSocketConnectionClosedException, ConnectionError):
                self.ws.shutdown()
                return None
            if opcode == ABNF.OPCODE_CLOSE:
                self.ws.shutdown()
                return int(struct.unpack("!H", message.data[:2])[0])

    def _read_frame(self) -> Frame:
        opcode, data = self.ws.recv_data()
        assert opcode == ABNF.OPCODE_TEXT, (opcode, data)
        frame: Frame = json.loads(data)
        return frame

    # ------------------------------------------------------------------ leaving

    def close(self) -> None:
        """Leave with a close frame."""
        self.ws.close()

    def abort(self) -> None:
        """Vanish: reset the TCP connection."""
        sock = self.ws.sock
        assert isinstance(sock, socket.socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.ws.shutdown()
