"""What a caller may read about a failure: the engine's own message, bounded, without paths and secrets."""

from __future__ import annotations

import re

import msgspec

TEXT_MAX_CHARS = 2000
_CUT = " …"
#: Two parts at least, and no ``//`` before: model names and URLs stay.
_PATH = re.compile(r"(?<![\w/:.~-])(?:~|/[\w.@+-]+)(?:/[\w.@+-]+)+/?")
_SECRET = re.compile(r"\b(?:hf_|sk-|ghp_)[A-Za-z0-9_-]{8,}|(?<=Bearer )[\w.~+/-]{8,}=*")


class _ErrorBody(msgspec.Struct):
    """The forms in which OpenAI-compatible servers wrap a message."""

    error: msgspec.Raw = msgspec.Raw(b"null")
    detail: msgspec.Raw = msgspec.Raw(b"null")
    message: msgspec.Raw = msgspec.Raw(b"null")


class _Error(msgspec.Struct):
    message: str | None = None


def presentable(text: str) -> str:
    """The text as a caller may see it."""
    text = _SECRET.sub("<secret>", _PATH.sub("<path>", text))
    if len(text) > TEXT_MAX_CHARS:
        return text[: TEXT_MAX_CHARS - len(_CUT)] + _CUT
    return text


def engine_message(body: bytes) -> str:
    """The message in an engine's error answer; the answer itself when it has no known form."""
    try:
        wrapped = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _plain(body)
    for raw in (wrapped.error, wrapped.message, wrapped.detail):
        if bytes(raw) == b"null":
            continue
        found = _message(raw)
        if found:
            return found
    return _plain(body)


def error_member(body: bytes) -> str:
    """The message of an ``error`` member inside an answer that claims success; empty without one."""
    try:
        wrapped = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    return "" if bytes(wrapped.error) == b"null" else _message(wrapped.error) or _plain(bytes(wrapped.error))


def _message(raw: msgspec.Raw) -> str:
    try:
        return msgspec.json.decode(raw, type=_Error).message or ""
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _plain(bytes(raw))


def _plain(body: bytes) -> str:
    return body[: 4 * TEXT_MAX_CHARS].decode("utf-8", "replace").strip() or "no message"
