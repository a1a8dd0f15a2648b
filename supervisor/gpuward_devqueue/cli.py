"""The command line of the development queue: options, the ready line, signals, exit codes."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from gpuward_devqueue.config import MIB, PAYLOAD_URL_THRESHOLD_BYTES, DevQueueConfig
from gpuward_devqueue.errors import ConfigurationError, PortTaken
from gpuward_devqueue.misbehaviour import Fault, Misbehaviour, parse
from gpuward_devqueue.server import DevQueue

EXIT_OK, EXIT_FAILED, EXIT_BAD_CONFIGURATION = 0, 1, 2
#: Log levels by the number of -v.
_LEVELS = {0: 30, 1: 20}

_EPILOG = """\
Workers connect to ws://HOST:PORT (they append /ws themselves; set CASOLA_WS_URL to it).
Callers use http://HOST:PORT:
  POST /v1/chat/completions, POST /v1/embeddings, GET /v1/models   transient jobs, OpenAI-compatible
  POST /jobs {"payload": {...}}, GET /jobs, GET /jobs/ID, DELETE /jobs/ID   persisted jobs
  GET /health, GET /ledger                                         what is going on, what happened
  GET, POST, DELETE /misbehave                                     scripted faults
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpuward dev-queue",
        description="A Casola-compatible queue for one machine: try a worker on it, or break it on purpose.",
        epilog=_EPILOG + "\nFaults for --misbehave:\n" + "\n".join(f"  {fault.value}" for fault in Fault),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--port", type=int, default=8788, help="port to listen on, 0 = any free one (default %(default)s)")
    add(
        "--lease-s",
        type=float,
        default=300.0,
        metavar="S",
        help="a persisted job not renewed for so long goes to another worker (default %(default)s)",
    )
    add(
        "--timeout-s",
        type=float,
        default=120.0,
        metavar="S",
        help="how long a /v1 caller waits before 504 (default %(default)s)",
    )
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the bearer token workers must present (default: none needed)",
    )
    add(
        "--presign",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="offer large payloads by URL and let workers upload large results (default: off)",
    )
    add(
        "--payload-url-threshold",
        type=int,
        default=PAYLOAD_URL_THRESHOLD_BYTES,
        metavar="BYTES",
        help="with --presign, a payload longer than this goes by URL (default %(default)s)",
    )
    add(
        "--public-url",
        metavar="URL",
        help="base of presigned URLs, if workers cannot use the address they connect to",
    )
    add(
        "--max-frame",
        type=int,
        default=64 * MIB,
        metavar="BYTES",
        help="largest WebSocket message taken from a worker (default %(default)s)",
    )
    add(
        "--queue-transient",
        action="store_true",
        help="let /v1 callers wait for a free slot instead of answering 503 at once",
    )
    add(
        "--accept-fence-zero",
        action="store_true",
        help="take answers to transient jobs that carry fence 0, as the reference worker sends them",
    )
    add(
        "--misbehave",
        action="append",
        default=[],
        metavar="FAULT[=TIMES][,FIELD=N]",
        help="commit a fault, TIMES times (0 = always, default 1); repeatable; fields: times, skip, code, "
        "status, delay_s, size_bytes; the faults are listed below",
    )
    add("-v", "--verbose", action="count", default=0, help="log connections and registrations to stderr")
    return parser


def _configuration(options: argparse.Namespace) -> tuple[DevQueueConfig, list[Misbehaviour]]:
    token = None
    if options.token_file is not None:
        try:
            token = options.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as refusal:
            raise ConfigurationError(f"--token-file {options.token_file}: {refusal}") from None
        if not token:
            raise ConfigurationError(f"--token-file {options.token_file}: empty, expected a token")
    config = DevQueueConfig(
        host=options.host,
        port=options.port,
        lease_s=options.lease_s,
        timeout_s=options.timeout_s,
        token=token,
        presign=options.presign,
        payload_url_threshold_bytes=options.payload_url_threshold,
        public_url=options.public_url,
        max_frame_bytes=options.max_frame,
        queue_transient=options.queue_transient,
        accept_fence_zero=options.accept_fence_zero,
    )
    return config, [parse(text) for text in options.misbehave]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a queue until SIGTERM or SIGINT.

    Args:
        argv: the arguments after the program's name; those of the process when left out.

    Returns:
        0 after a requested stop, 1 when the queue could not start, 2 for options it cannot run with.
    """
    options = _parser().parse_args(argv)
    try:
        config, faults = _configuration(options)
    except ConfigurationError as refusal:
        print(f"gpuward dev-queue: {refusal}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    structlog.configure(
        # Looked up at each use: whoever runs this in-process may have replaced the stream since.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS.get(options.verbose, 10)),
    )
    try:
        asyncio.run(_serve(config, faults))
    except PortTaken as refusal:
        print(f"gpuward dev-queue: {refusal}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


async def _serve(config: DevQueueConfig, faults: list[Misbehaviour]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    queue = DevQueue(config)
    for fault in faults:
        queue.broker.script.add(fault)
    async with queue:
        print(_ready_line(queue), flush=True)
        if config.host not in {"127.0.0.1", "localhost", "::1"}:
            print(
                "note: anybody who reaches this address may submit jobs; a token only keeps workers out",
                flush=True,
            )
        await stop.wait()


def _ready_line(queue: DevQueue) -> str:
    body = '{"model":"default","messages":[{"role":"user","content":"hello"}]}'
    return (
        f"dev-queue ready: workers {queue.ws_url} | callers {queue.http_url} | try: "
        f"curl -s {queue.http_url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
    )
