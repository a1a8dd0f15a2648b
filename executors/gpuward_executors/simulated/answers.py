"""Knows what the simulated engine says: text and vectors that follow from the input alone. Pure."""

import hashlib
import re
import struct
from collections.abc import Iterator
from itertools import cycle

_ECHO_CHARS = 200
_TOKEN = re.compile(r"\s*\S+\s*")


def echo(text: str) -> str:
    """Return the answer to a text: `sim:` and its first 200 characters."""
    return f"sim:{text[:_ECHO_CHARS]}"


def token_count(text: str) -> int:
    """Return the tokens of a prompt, by the rule of thumb of four characters each; at least 1."""
    return len(text) // 4 + 1


class Answer:
    """An answer cut into tokens, one word each.

    Args:
        text: The whole echo.
        tokens_max: The caller's limit, at least 1.
        tokens_min: Repeat the echo until there are so many tokens, before the limit applies.
    """

    def __init__(self, text: str, tokens_max: int, tokens_min: int = 0) -> None:
        tokens = _TOKEN.findall(text) or [text]
        wanted = max(len(tokens), tokens_min)
        if wanted > len(tokens):
            tokens = _repeat(tokens, min(wanted, tokens_max))
        #: Why the answer ends: the echo is over, or the caller's limit came first.
        self.finish_reason = "length" if wanted > tokens_max else "stop"
        self.tokens = tokens[:tokens_max]

    def text(self, start: int, end: int) -> str:
        """Return the text of the tokens from start up to end."""
        return "".join(self.tokens[start:end])


def embed(text: str, dimensions: int) -> bytes:
    """Return a vector of length 1 that follows from the text, as little-endian 32-bit floats.

    Args:
        text: Whatever is embedded.
        dimensions: Length of the vector, at least 1.
    """
    raw = hashlib.shake_128(text.encode(errors="surrogatepass")).digest(4 * dimensions)
    numbers = [number / 2**31 - 1.0 for number in struct.unpack(f"<{dimensions}I", raw)]
    length = sum(number * number for number in numbers) ** 0.5 or 1.0
    return struct.pack(f"<{dimensions}f", *(number / length for number in numbers))


def floats(vector: bytes) -> list[float]:
    """Return the numbers of a vector made by `embed`."""
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def _repeat(tokens: list[str], wanted: int) -> list[str]:
    joined = [*tokens[:-1], f"{tokens[-1].rstrip()} "]
    words: Iterator[str] = cycle(joined)
    return [next(words) for _ in range(wanted)]
