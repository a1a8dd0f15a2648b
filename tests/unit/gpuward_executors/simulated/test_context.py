"""What every route checks before it bothers the engine."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gpuward_executors.simulated.context import Context
from gpuward_executors.simulated.engine_link import EngineLink
from gpuward_executors.simulated.faults import Fault, FaultKind, parse_armed_fault
from gpuward_executors.simulated.http_errors import ApiError
from gpuward_executors.simulated.metrics import Metrics
from gpuward_executors.simulated.options import Options


def context(**changes: Any) -> Context:
    metrics = Metrics("a", 2)
    options = Options(**{"model": "m", "served_names": ("a", "b"), "max_model_len": 100, **changes})
    return Context(options, EngineLink(0, metrics), metrics)


def wish(kind: str | None = None) -> Any:
    return SimpleNamespace(gpuward_fault=kind)


def test_every_served_name_is_answered_by_itself() -> None:
    assert [context().check_model(name) for name in ("a", "b", None)] == ["a", "b", "a"]


def test_another_model_is_not_found() -> None:
    with pytest.raises(ApiError, match="`m` does not exist") as caught:
        context().check_model("m")
    assert caught.value.status == 404


def test_an_answer_may_fill_the_context() -> None:
    assert context().check_length(40, 160, None) == 60
    assert context().check_length(40, 160, 80) == 60
    assert context().check_length(40, 160, 8) == 8


@pytest.mark.parametrize(
    ("prompt_tokens", "tokens_max", "part"),
    [(100, None, "maximum context length is 100"), (1, 0, "at least 1"), (1, 101, "cannot be greater than")],
)
def test_lengths_that_do_not_fit(prompt_tokens: int, tokens_max: int | None, part: str) -> None:
    with pytest.raises(ApiError, match=part) as caught:
        context().check_length(prompt_tokens, 4 * prompt_tokens, tokens_max)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (wish("drop"), "hello"),
        (wish(), "FAULT:drop"),
        (wish(), "FAULT:drop and more"),
        (wish("drop"), "FAULT:segv"),
    ],
)
def test_a_request_may_wish_for_a_fault(body: Any, text: str) -> None:
    assert context(allow_faults=True).fault_for(body, text) == Fault(FaultKind.DROP)


@pytest.mark.parametrize("text", ["FAULT:", "FAULT: drop", "FAULT:nope", "FAULT:   "])
def test_an_unknown_wish_is_a_bad_request(text: str) -> None:
    with pytest.raises(ApiError, match="unknown kind"):
        context(allow_faults=True).fault_for(wish(), text)


def test_wishes_are_only_words_unless_faults_are_allowed() -> None:
    assert context().fault_for(wish("drop"), "FAULT:drop") is None


def test_an_armed_fault_needs_no_permission() -> None:
    armed = context(faults=(parse_armed_fault("drop:1"),))
    assert [armed.fault_for(wish(), "") for _ in range(3)] == [None, Fault(FaultKind.DROP), None]


def test_a_full_engine_refuses_and_counts() -> None:
    async def story() -> None:
        small = context(max_num_queued_reqs=1)
        small.check_room()
        small.engine.submit(1, 1, "stop")
        with pytest.raises(ApiError) as caught:
            small.check_room()
        assert caught.value.status == 503
        assert small.metrics.rejections == 1

    asyncio.run(story())


def test_a_dead_engine_has_no_room() -> None:
    dead = context()
    dead.engine.gone.set()
    with pytest.raises(ApiError) as caught:
        dead.check_room()
    assert caught.value.status == 500


def test_a_seed_makes_ids_repeatable() -> None:
    first, second = (context(seed=7), context(seed=7))
    assert first.request_id("x") == second.request_id("x")
    assert first.request_id("x") != first.request_id("x")
    assert context().request_id("x") != context().request_id("x")
