"""Knows the engine's error bodies: status, type and wording by cause."""

import re

import msgspec
from aiohttp import web

_ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
_BUSY = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)


class _Detail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: int


class _ErrorBody(msgspec.Struct):
    error: _Detail


class ApiError(Exception):
    """A request is answered with an error.

    Args:
        status: HTTP status, also the body's `code`.
        kind: The body's `type`.
        message: The body's `message`.
        param: The parameter to blame, if there is one.
    """

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = msgspec.json.encode(_ErrorBody(_Detail(message, kind, param, status)))

    def response(self) -> web.Response:
        """Return the HTTP answer."""
        return web.Response(status=self.status, body=self.body, content_type="application/json")


def bad_request(message: str, param: str | None = None) -> ApiError:
    """Return the answer to a request that is well-formed and cannot be served."""
    return ApiError(400, "BadRequestError", message, param)


def model_not_found(model: str, served: tuple[str, ...]) -> ApiError:
    """Return the answer to a request for another model."""
    message = f"The model `{model}` does not exist. Valid aliases: {', '.join(served)}."
    return ApiError(404, "NotFoundError", message, "model")


def malformed(error: Exception) -> ApiError:
    """Return the answer to a body that is not the expected JSON.

    Args:
        error: What msgspec said.
    """
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        found = re.search(r"at `\$\.?([^`]*)`", text)
        field = re.search(r"missing required field `(\w+)`", text)
        kind = "missing" if field else "invalid"
        location = ("body", field.group(1)) if field else ("body", found.group(1) if found else "")
        shown = "Field required" if field else text
    else:
        position = re.search(r"byte (\d+)", text)
        kind = "json_invalid"
        location = ("body", position.group(1) if position else "0")
        shown = "JSON decode error"
    detail = {"type": kind, "loc": location, "msg": shown, "ctx": {"error": text}}
    return ApiError(400, "Bad Request", f"1 validation error:\n  {detail}")


def engine_dead() -> ApiError:
    """Return the answer of an API process whose engine is gone."""
    return ApiError(500, "InternalServerError", _ENGINE_DEAD)


def engine_busy() -> ApiError:
    """Return the answer of an engine whose line is full."""
    return ApiError(503, "Service Unavailable", _BUSY)


def internal_error() -> ApiError:
    """Return the answer to a request that failed although the engine is well."""
    return ApiError(500, "InternalServerError", "Internal server error")
