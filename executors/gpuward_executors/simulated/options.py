"""Knows the simulated engine's command line: vLLM's own flags where they mean something here, and ours."""

import argparse
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from gpuward_executors.simulated.faults import ArmedFault, parse_armed_fault


class TermBehaviour(StrEnum):
    """How a busy engine takes SIGTERM; each was seen of a real one."""

    #: Requests in flight are answered with finish reason `abort`, exit 0.
    CLEAN = "clean"
    #: Plain requests get a 500, streams are cut, exit 0.
    ABORT = "abort"
    #: The port closes and the process stays until SIGKILL; requests are never answered.
    HANG = "hang"
    #: One of the three, as often as it was seen.
    RANDOM = "random"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the command line decides."""

    model: str
    #: Names the API answers to; never empty.
    served_names: tuple[str, ...]
    host: str = "0.0.0.0"  # vLLM's own default
    #: 0 picks a free port, printed in the ready line.
    port: int = 8000
    max_model_len: int = 32768
    max_num_seqs: int = 256
    #: Running plus waiting requests before 503; None for no limit.
    max_num_queued_reqs: int | None = None
    access_log: bool = False
    log_stats: bool = True
    startup_s: float = 0.0
    startup_log: bool = False
    token_s: float = 0.0
    prefill_s: float = 0.0
    #: Least number of words of an answer; the echo is repeated up to it.
    answer_tokens: int = 0
    #: Length of an embedding without `dimensions`.
    embedding_dimensions: int = 64
    #: None: another one at each start.
    seed: int | None = None
    workers: int = 0
    setsid_grandchild: bool = False
    #: Files in /dev/shm that are removed at every end but SIGKILL.
    shm_segments: int = 0
    term_behaviour: TermBehaviour = TermBehaviour.CLEAN
    #: Seconds for which a dead engine's /health answers 503 before the process exits.
    death_linger_s: float = 0.1
    allow_faults: bool = False
    faults: tuple[ArmedFault, ...] = ()
    #: Flags that mean nothing here, as they were written.
    ignored: tuple[str, ...] = ()


def parse_options(arguments: Sequence[str]) -> Options:
    """Read `serve MODEL [flags]`; flags of vLLM that mean nothing here are kept in `ignored`.

    Args:
        arguments: The command line without the program's name.

    Raises:
        SystemExit: Code 2 with a usage line, when a flag we know has a bad value or the model is missing.
    """
    rest = list(arguments)
    if rest[:1] == ["serve"]:
        del rest[0]
    # argparse would hand the value of an unknown flag to an optional positional.
    tag = rest.pop(0) if rest and not rest[0].startswith("-") else None
    parser = _parser()
    known, ignored = parser.parse_known_args(rest)
    values = vars(known)
    model = tag or values["model"]
    if not model:
        parser.error("no model: expected `serve MODEL` or `--model MODEL`")
    values["model"] = model
    values["served_names"] = tuple(values["served_names"] or (model,))
    values["faults"] = tuple(values["faults"])
    values["term_behaviour"] = TermBehaviour(values["term_behaviour"])
    tensor_parallel = values.pop("tensor_parallel_size")
    if values["workers"] is None:
        # With one GPU the worker lives inside the engine process, with several each has its own.
        values["workers"] = tensor_parallel if tensor_parallel > 1 else 0
    return Options(ignored=tuple(ignored), **values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simulated-engine serve MODEL",
        description="Stands in for `vllm serve` without a GPU: same routes, metrics, processes and deaths.",
        epilog="Flags of vLLM that are not listed are accepted and ignored with a warning.",
        allow_abbrev=False,
    )
    like_vllm = parser.add_argument_group("as in vLLM")
    like_vllm.add_argument("--model", help="the model, when it does not stand behind `serve`")
    like_vllm.add_argument("--served-model-name", dest="served_names", nargs="+", metavar="NAME")
    like_vllm.add_argument("--host", default="0.0.0.0")
    like_vllm.add_argument(
        "--port", type=_port, default=8000, help="0 picks a free one, shown in the ready line"
    )
    like_vllm.add_argument("--max-model-len", type=_positive, default=32768, metavar="TOKENS")
    like_vllm.add_argument(
        "--max-num-seqs", type=_positive, default=256, metavar="N", help="requests that run at once"
    )
    like_vllm.add_argument(
        "--max-num-queued-reqs", type=_positive, metavar="N", help="503 beyond so many requests"
    )
    like_vllm.add_argument("--tensor-parallel-size", "-tp", type=_positive, default=1, metavar="N")
    like_vllm.add_argument("--seed", type=int)
    like_vllm.add_argument("--disable-log-stats", dest="log_stats", action="store_false")
    ours = parser.add_argument_group("simulation")
    ours.add_argument(
        "--startup-s", type=_seconds, default=0.0, metavar="S", help="refuse connections for so long"
    )
    ours.add_argument("--startup-log", action="store_true", help="print start-up lines as vLLM does")
    ours.add_argument("--access-log", action="store_true", help="print one line per request")
    ours.add_argument("--token-s", type=_seconds, default=0.0, metavar="S", help="time per token")
    ours.add_argument(
        "--prefill-s", type=_seconds, default=0.0, metavar="S", help="time before the first token"
    )
    ours.add_argument(
        "--answer-tokens", type=_count, default=0, metavar="N", help="repeat short answers up to N words"
    )
    ours.add_argument("--embedding-dimensions", type=_positive, default=64, metavar="N")
    ours.add_argument("--workers", type=_count, metavar="N", help="worker processes under the engine child")
    ours.add_argument(
        "--setsid-grandchild", action="store_true", help="add a process that leaves the session"
    )
    ours.add_argument("--shm-segments", type=_count, default=0, metavar="N", help="files in /dev/shm")
    ours.add_argument("--term-behaviour", choices=list(TermBehaviour), default=TermBehaviour.CLEAN)
    ours.add_argument(
        "--death-linger-s", type=_seconds, default=0.1, metavar="S", help="503 for so long after a death"
    )
    ours.add_argument(
        "--allow-faults", action="store_true", help="requests and POST /fault may trigger faults"
    )
    ours.add_argument(
        "--fault",
        dest="faults",
        action="append",
        type=_armed_fault,
        default=[],
        metavar="KIND[:ARG][:WHEN]",
        help="WHEN: start, N requests, or Ns seconds; may be repeated",
    )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is below 1")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return value


def _armed_fault(text: str) -> ArmedFault:
    try:
        return parse_armed_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
