"""What an engine's log lines say about its start, and which of its last lines tell why it died.

Only for people: no decision rests on the text of a log line, which changes between versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Part of a line -> phase of the start; looked through in this order. Seen in vLLM 0.32.
PHASES: tuple[tuple[str, str], ...] = (
    ("Application startup complete", "answering"),
    ("Capturing CUDA graph", "capturing CUDA graphs"),
    ("torch.compile", "compiling"),
    ("Dynamo bytecode transform", "compiling"),
    ("Memory profiling", "profiling memory"),
    ("GPU KV cache size", "setting up the KV cache"),
    ("Loading safetensors checkpoint", "loading weights"),
    ("Starting to load model", "loading weights"),
    ("Downloading", "downloading"),
    ("Initializing a V1 LLM engine", "initializing"),
)

_TELLING = re.compile(
    r"error|exception|fatal|segfault|segmentation fault|out of memory|core dumped"
    r"|\bkilled\b|\baborted\b|cannot|not found",
    re.IGNORECASE,
)
#: The last line of a Python traceback.
_EXCEPTION = re.compile(r"[A-Za-z](?:Error|Exception): \S")
_LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL|FATAL)\b")
_LEVELS = {"DEBUG": "debug", "INFO": "info", "WARNING": "warning"}
#: Characters of a line in which its level is looked for.
_LEVEL_WITHIN = 80
_LINE_MAX_CHARS = 300


def phase_of(line: str) -> str | None:
    """Phase that a line announces, or None."""
    for part, phase in PHASES:
        if part in line:
            return phase
    return None


def level_of(line: str) -> str:
    """Level of a line: ``debug``, ``info``, ``warning`` or ``error``; ``info`` when it has none."""
    found = _LEVEL.search(line, 0, _LEVEL_WITHIN)
    return _LEVELS.get(found.group(1), "error") if found else "info"


def telling_lines(lines: Iterable[str]) -> str:
    """The lines that tell why an engine ended, joined for a sentence; empty when it wrote nothing.

    The first one that speaks of an error and the first exception are often the root cause, the last one is
    the outermost traceback: all three are kept.
    """
    written = [line.strip() for line in lines if line.strip()]
    telling = [line for line in written if _TELLING.search(line)]
    exceptions = [line for line in telling if _EXCEPTION.search(line)]
    # A dict, because one line may be all three.
    chosen = list(dict.fromkeys(telling[:1] + exceptions[:1] + telling[-1:])) or written[-1:]
    return " … ".join(line[:_LINE_MAX_CHARS] for line in chosen)
