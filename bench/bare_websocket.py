"""Baseline (b): an echo worker in one process on websocket-client, written the plain way."""

from __future__ import annotations

import sys

import msgspec
import websocket


class Job(msgspec.Struct):
    """The fields of a job frame that an echo worker needs."""

    type: str
    job_id: str = ""
    fence_token: int = 0
    payload: msgspec.Raw = msgspec.Raw(b"{}")


def main(url: str) -> None:
    """Connect, register, echo until the queue closes."""
    decode = msgspec.json.Decoder(Job).decode
    connection = websocket.create_connection(url + "/ws", timeout=60)
    connection.send('{"type":"register","worker_id":"bare","config_id":"bench","capacity":1024}')
    while True:
        try:
            job = decode(connection.recv())
        except (websocket.WebSocketException, OSError):
            return
        connection.send(
            b'{"type":"job_result","job_id":"%s","result":%s,"fence_token":%d}'
            % (job.job_id.encode(), bytes(job.payload), job.fence_token)
        )


if __name__ == "__main__":
    main(sys.argv[1])
