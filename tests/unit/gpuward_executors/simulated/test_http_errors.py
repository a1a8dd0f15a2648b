"""Error bodies by cause."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpuward_executors.simulated.chat import ChatRequest
from gpuward_executors.simulated.http_errors import (
    ApiError,
    bad_request,
    engine_busy,
    engine_dead,
    internal_error,
    malformed,
    model_not_found,
)


def error_of(error: ApiError) -> dict[str, Any]:
    body: dict[str, dict[str, Any]] = msgspec.json.decode(error.body)
    assert list(body) == ["error"]
    assert body["error"]["code"] == error.status
    return body["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "start"),
    [
        (bad_request("no", "max_tokens"), 400, "BadRequestError", "no"),
        (
            model_not_found("x", ("a", "b")),
            404,
            "NotFoundError",
            "The model `x` does not exist. Valid aliases: a, b.",
        ),
        (engine_dead(), 500, "InternalServerError", "EngineCore encountered an issue."),
        (internal_error(), 500, "InternalServerError", "Internal server error"),
        (engine_busy(), 503, "Service Unavailable", "The engine is currently busy"),
    ],
)
def test_causes(error: ApiError, status: int, kind: str, start: str) -> None:
    body = error_of(error)
    assert error.status == status
    assert body["type"] == kind
    assert body["message"].startswith(start)


def test_the_response_carries_status_and_body() -> None:
    error = bad_request("no", "prompt")
    response = error.response()
    assert (response.status, response.body) == (400, error.body)
    assert response.content_type == "application/json"
    assert error_of(error)["param"] == "prompt"


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"{", "json_invalid"),
        (b"", "json_invalid"),
        (b"[]", "'type': 'invalid'"),
        (b"{}", "'loc': ('body', 'messages'), 'msg': 'Field required'"),
        (b'{"messages":[{"role":7}]}', "messages[0].role"),
    ],
)
def test_malformed_bodies_are_validation_errors(body: bytes, part: str) -> None:
    with pytest.raises(msgspec.MsgspecError) as caught:
        msgspec.json.decode(body, type=ChatRequest)
    error = error_of(malformed(caught.value))
    assert error["type"] == "Bad Request"
    assert error["message"].startswith("1 validation error:\n  {")
    assert part in error["message"]
