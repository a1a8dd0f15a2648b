"""One thing that is wrong in a configuration: where, what, what was expected, what to do. Never a secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from gpuward_supervisor.secrets import (
    MASK,
    Secret,
    is_secret_name,
    without_credentials,
    without_secret_options,
)

#: Longest value that a problem shows, in characters.
_SHOWN_MAX = 160
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")

#: Keys and list positions from the top of the file to the thing meant.
Path = tuple[str | int, ...]


class Problem(msgspec.Struct, frozen=True):
    """One refusal."""

    #: The file's name, ``environment``, or empty when neither says it.
    where: str
    #: ``executors.slots`` or ``CASOLA_CAPACITY``; empty when it is the whole file.
    key: str
    #: The value as a person may see it; empty when there is none.
    value: str
    #: What would be right, as a noun phrase, or why this cannot be.
    expected: str
    #: What to do; empty when ``expected`` says it all.
    next_step: str = ""

    def text(self) -> str:
        """One line."""
        place = ": ".join(part for part in (self.where, self.key) if part)
        shown = f"{place} = {self.value}" if self.value else place
        step = f"; {self.next_step}" if self.next_step else ""
        return f"{shown}: {self.expected}{step}"


def key_text(path: Sequence[str | int]) -> str:
    """A path as it would be written in TOML: ``executor[1].engine.kind``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.match(part) else one_line(repr(part))
            text += f".{name}" if text else name
    return text


def shown(value: object, key: str = "") -> str:
    """A value as a problem may show it: masked when its key is secret, on one line, cut.

    Args:
        value: anything that TOML or the environment can hold.
        key: last part of its path.
    """
    if isinstance(value, Secret) or is_secret_name(key):
        return MASK
    text = without_secret_options(without_credentials(_toml_text(value)))
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 1] + "…"


def one_line(text: str) -> str:
    """A text with its control characters made visible."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, or None."""
    from difflib import get_close_matches  # only a wrong configuration pays for it

    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def _toml_text(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case str():
            return f'"{one_line(value)}"'
        case list() | tuple():
            return "[" + ", ".join(_toml_text(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{key} = {shown(item, str(key))}" for key, item in value.items()) + "}"
        case _:
            return one_line(str(value))
