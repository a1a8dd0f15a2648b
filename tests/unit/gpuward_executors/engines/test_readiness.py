from __future__ import annotations

import asyncio

import pytest

from gpuward_executors.core.events import EngineHealth
from gpuward_executors.engines.readiness import Answered, health, until_ready
from gpuward_executors.errors import EngineFailed

Answer = tuple[int, bytes] | Exception
REFUSED = EngineFailed("the engine cannot be reached")
MODELS = (200, b'{"object":"list","data":[{"id":"tiny"},{"id":"lora"}]}')


class ScriptedHttp:
    """Answers each path with its list of answers, the last one for ever."""

    def __init__(self, **answers: list[Answer]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        self.asked.append(path)
        assert timeout_s > 0
        left = self.answers[path.rpartition("/")[2]]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def ready(http: ScriptedHttp) -> Answered:
    async def run() -> Answered:
        return await asyncio.wait_for(until_ready(http, "/health"), 30)

    return asyncio.run(run())


def test_an_engine_is_ready_once_it_is_healthy_and_lists_its_models() -> None:
    http = ScriptedHttp(
        health=[REFUSED, (503, b""), (200, b"")],
        models=[(404, b""), MODELS],
        version=[(200, b'{"version":"0.32.0"}')],
    )
    assert ready(http) == Answered("0.32.0", ("tiny", "lora"))
    assert http.asked == ["/health"] * 3 + ["/v1/models", "/health", "/v1/models", "/version"]


def test_an_engine_that_is_silent_is_asked_again() -> None:
    http = ScriptedHttp(
        health=[TimeoutError(), (200, b"")], models=[TimeoutError(), MODELS], version=[REFUSED]
    )
    assert ready(http) == Answered("", ("tiny", "lora"))


@pytest.mark.parametrize("version", [(404, b""), (200, b"nonsense"), TimeoutError()])
def test_a_version_is_good_to_know_but_not_needed(version: Answer) -> None:
    http = ScriptedHttp(health=[(200, b"")], models=[MODELS], version=[version])
    assert ready(http).version == ""


def test_a_list_of_models_in_another_form_is_a_list_of_models() -> None:
    http = ScriptedHttp(health=[(200, b"")], models=[(200, b"[]")], version=[(404, b"")])
    assert ready(http) == Answered("", ())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, b""), EngineHealth.HEALTHY),
        ((503, b""), EngineHealth.DEAD),
        (REFUSED, EngineHealth.DEAD),
        (TimeoutError(), EngineHealth.SILENT),
    ],
)
def test_one_look_at_an_engine(answer: Answer, expected: EngineHealth) -> None:
    assert asyncio.run(health(ScriptedHttp(health=[answer]), "/health")) is expected
