"""Many seeds of the simulated node: no promise breaks, seeds replay, planted bugs are caught.

``GPUWARD_SIM_SEEDS`` and ``GPUWARD_SIM_STEPS`` set the size; ``GPUWARD_SIM_FIRST`` the first seed, to
replay one: ``GPUWARD_SIM_FIRST=417 GPUWARD_SIM_SEEDS=1 pytest tests/simulation -m sim``.
"""

from __future__ import annotations

import os

import pytest

from gpuward_supervisor.core import executors, runs
from gpuward_supervisor.core.invariants import InvariantViolated
from simulation.queue_side import PromiseBroken
from simulation.world import Dangers, World

SEEDS = int(os.environ.get("GPUWARD_SIM_SEEDS", "100"))
STEPS = int(os.environ.get("GPUWARD_SIM_STEPS", "2000"))
FIRST = int(os.environ.get("GPUWARD_SIM_FIRST", "1"))
#: Seeds per test, so that they spread over the processors.
CHUNK = max(1, min(25, SEEDS // 4 or 1))

pytestmark = [pytest.mark.sim, pytest.mark.slow]


@pytest.mark.parametrize("start", range(FIRST, FIRST + SEEDS, CHUNK))
def test_no_promise_breaks(start: int) -> None:
    for seed in range(start, min(start + CHUNK, FIRST + SEEDS)):
        world = World(seed)
        try:
            world.run(STEPS)
            world.settle()
        except (PromiseBroken, InvariantViolated, KeyError, AssertionError) as error:
            raise AssertionError(f"seed {seed}, t={world.clock.now_s:.3f}: {error!r}") from error


def test_a_seed_replays_exactly() -> None:
    assert World(7).run(1500) == World(7).run(1500)
    assert World(7).run(1500) != World(8).run(1500)


def test_the_worlds_are_eventful() -> None:
    """A simulation in which nothing happens proves nothing."""
    world = World(3)
    world.run(6000)
    counters = world.state.counters
    assert world.lives > 1
    assert counters.deaths > 3 and counters.retried > 3 and counters.revoked > 3
    assert counters.succeeded > 30 and counters.stale_messages > 3 and counters.superseded > 0


class Planted:
    """Bugs that were put in on purpose."""

    @staticmethod
    def ignores_the_incarnation(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(executors, "_current", lambda state, event: state.executors.get(event.executor))

    @staticmethod
    def forgets_to_retry(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runs, "lose", lambda *_: None)


@pytest.mark.parametrize(
    "plant", [Planted.ignores_the_incarnation, Planted.forgets_to_retry], ids=lambda p: p.__name__
)
def test_a_planted_bug_is_caught(plant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)  # type: ignore[operator]
    caught = 0
    for seed in range(1, 21):
        world = World(seed, Dangers(executor_killed_s=3.0))
        try:
            world.run(2000)
            world.settle()
        except (PromiseBroken, InvariantViolated, KeyError, AssertionError):
            caught += 1
    assert caught > 0, "twenty seeds saw nothing wrong with a core that has a planted bug"
