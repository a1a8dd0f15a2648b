"""Baseline (a): ROUTER/DEALER over ipc with msgspec both ways, two processes, nothing else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

import msgspec
import zmq


class Task(msgspec.Struct, array_like=True, frozen=True):
    """What goes out."""

    number: int
    name: str


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What comes back."""

    number: int
    size: int


def echo(endpoint: str) -> None:
    """Answer until told to stop; the DEALER side."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)
    socket.send(b"hello")
    decode, encode = msgspec.msgpack.Decoder(Task).decode, msgspec.msgpack.Encoder().encode
    while True:
        header, body = socket.recv_multipart()
        if header == b"":
            break
        task = decode(header)
        socket.send_multipart([encode(Answer(task.number, len(body))), body])
    context.destroy(0)


class Bare:
    """The ROUTER side; drives rounds."""

    def __init__(self, payload_bytes: int = 200) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gpuward-bench-")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        endpoint = f"ipc://{self._folder.name}/s"
        self._socket.bind(endpoint)
        self._process = subprocess.Popen([sys.executable, "-m", "bench.bare_zmq", endpoint])
        self._peer, _ = self._socket.recv_multipart()
        self._body = b"x" * payload_bytes

    def round(self, jobs: int, window: int) -> tuple[float, list[float]]:
        """Run ``jobs`` round trips with ``window`` in flight; returns the seconds and each one's latency."""
        decode, encode = msgspec.msgpack.Decoder(Answer).decode, msgspec.msgpack.Encoder().encode
        socket, peer, body = self._socket, self._peer, self._body
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        sent_at = [0.0] * jobs
        latencies: list[float] = []
        started = time.perf_counter()
        issued = 0
        for issued in range(min(window, jobs)):
            sent_at[issued] = time.perf_counter()
            socket.send_multipart([peer, encode(Task(issued, "echo")), body])
        issued += 1
        while len(latencies) < jobs:
            poller.poll()
            while True:
                try:
                    _, header, _ = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                latencies.append(time.perf_counter() - sent_at[decode(header).number])
                if issued < jobs:
                    sent_at[issued] = time.perf_counter()
                    socket.send_multipart([peer, encode(Task(issued, "echo")), body])
                    issued += 1
        return time.perf_counter() - started, latencies

    def close(self) -> None:
        """Stop the peer and clean up."""
        self._socket.send_multipart([self._peer, b"", b""])
        self._process.wait(10)
        self._context.destroy(0)
        self._folder.cleanup()


if __name__ == "__main__":
    echo(sys.argv[1])
