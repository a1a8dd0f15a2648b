from __future__ import annotations

from random import Random

import pytest

from gpuward_ipc.types import ExecutorName
from gpuward_supervisor.core.policy import Policy
from gpuward_supervisor.core.restarts import delay_s, record_death
from gpuward_supervisor.core.state import Executor

POLICY = Policy(
    executors=(),
    sources=(),
    backoff_first_s=1.0,
    backoff_max_s=60.0,
    backoff_jitter=0.0,
    backoff_reset_s=60.0,
    restart_intensity=2,
    restart_period_s=100.0,
)


def executor() -> Executor:
    return Executor(ExecutorName("gpu0"), 1)


@pytest.mark.parametrize(
    ("failures", "expected_s"),
    [(0, 1.0), (1, 2.0), (2, 4.0), (5, 32.0), (6, 60.0), (7, 60.0), (10_000, 60.0)],
)
def test_delay_doubles_up_to_its_limit(failures: int, expected_s: float) -> None:
    assert delay_s(failures, POLICY, Random(1)) == expected_s


def test_jitter_adds_up_to_its_share_and_follows_the_seed() -> None:
    policy = Policy(executors=(), sources=(), backoff_jitter=0.3)
    delays = [delay_s(0, policy, Random(seed)) for seed in range(100)]
    assert all(1.0 <= d < 1.3 for d in delays)
    assert max(delays) - min(delays) > 0.2
    assert delays == [delay_s(0, policy, Random(seed)) for seed in range(100)]


def test_deaths_in_a_row_wait_ever_longer() -> None:
    gpu = executor()
    for now_s, spawn_at_s in ((0.0, 1.0), (200.0, 202.0), (400.0, 404.0)):
        assert record_death(gpu, POLICY, Random(1), now_s)
        assert gpu.spawn_at_s == spawn_at_s


def test_a_long_time_of_being_ready_starts_the_delay_afresh() -> None:
    gpu = executor()
    gpu.failures = 5
    gpu.ready_at_s = 100.0
    record_death(gpu, POLICY, Random(1), 160.0)
    assert gpu.spawn_at_s == 161.0


def test_a_short_time_of_being_ready_does_not() -> None:
    gpu = executor()
    gpu.failures = 3
    gpu.ready_at_s = 100.0
    record_death(gpu, POLICY, Random(1), 159.0)
    assert gpu.spawn_at_s == 167.0


def test_more_deaths_than_the_intensity_within_the_period_are_too_many() -> None:
    gpu = executor()
    assert [record_death(gpu, POLICY, Random(1), now_s) for now_s in (0.0, 50.0, 99.0)] == [True, True, False]


def test_deaths_that_lie_back_longer_than_the_period_do_not_count() -> None:
    gpu = executor()
    assert [record_death(gpu, POLICY, Random(1), now_s) for now_s in (0.0, 50.0, 100.0)] == [True, True, True]
