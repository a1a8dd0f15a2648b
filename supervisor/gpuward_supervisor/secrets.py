"""Values that must never be shown: a type that hides its own text, and the rule by which names are secret."""

from __future__ import annotations

import hmac
import re
from pathlib import Path
from typing import NoReturn

MASK = "***"
#: Longer than any token; a file beyond it is not a token file.
_TOKEN_FILE_MAX_BYTES = 64 * 1024

_SECRET_NAME = re.compile(
    r"token|secret|passw|credential|api_?key|private_?key|access_?key|(^|_)(auth|pat)($|_)", re.IGNORECASE
)
#: These only name a place, or a number of tokens.
_HARMLESS_NAME = re.compile(r"(_file|_path|_dir)$|tokenizers?|tokens", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
#: A long option with its value, in a command line or in a list of arguments as a person writes it.
_OPTION = re.compile(r"""(--?[A-Za-z][\w.-]*)(=|["']?,?\s+["']?)((?!-)[^\s"',]+)""")
_QUERY = re.compile(r"(?<=://)([^\s?#]*)[?#]\S*")


class Secret:
    """A value that prints, formats and compares without showing itself; :meth:`reveal` is the only way in.

    It is no ``str``: joining, encoding or serializing one by accident fails instead of leaking.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself; for the one place that sends it."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: hand the value to the one process that needs it")


def is_secret_name(name: str) -> bool:
    """Whether a variable or key of this name holds a secret, judged by the name alone."""
    return bool(_SECRET_NAME.search(name)) and not _HARMLESS_NAME.search(name)


def without_credentials(url: str) -> str:
    """A URL, or a text with URLs in it, less user, password, query and fragment: a presigned URL is one."""
    return _QUERY.sub(r"\1", _USERINFO.sub(MASK, url))


def without_secret_options(text: str) -> str:
    """A command line less the values of options whose names are secret (``--api-key …``)."""
    return _OPTION.sub(_masked_option, text)


def _masked_option(found: re.Match[str]) -> str:
    value = MASK if is_secret_name(found[1].replace("-", "_")) else found[3]
    return f"{found[1]}{found[2]}{value}"


def read_secret_file(path: Path) -> Secret:
    """Read a file that holds one secret and nothing else; white space around it is removed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty, too large, or is not one line of printable ASCII. The text never shows
            what is in it.
    """
    with path.open("rb") as file:
        data = file.read(_TOKEN_FILE_MAX_BYTES + 1)
    if len(data) > _TOKEN_FILE_MAX_BYTES:
        raise ValueError(f"it is larger than {_TOKEN_FILE_MAX_BYTES} bytes")
    return checked_secret(data.decode("utf-8", errors="replace"))


def checked_secret(text: str) -> Secret:
    """A secret that can travel in a header.

    Raises:
        ValueError: it is empty, or not one line of printable ASCII. The text never shows it.
    """
    value = text.strip()
    if not value:
        raise ValueError("it is empty")
    if not value.isascii() or not value.isprintable():
        raise ValueError("it is not one line of printable ASCII characters")
    return Secret(value)
