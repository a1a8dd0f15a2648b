from __future__ import annotations

from gpuward_supervisor.sources.backoff import Backoff


def delays(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_s() for _ in range(count)]


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(first_s=1, max_s=60, jitter=0.3, chance=lambda: 0.0)
    assert delays(backoff, 8) == [1, 2, 4, 8, 16, 32, 60, 60]


def test_jitter_adds_its_share_and_never_takes_away() -> None:
    backoff = Backoff(first_s=1, max_s=60, jitter=0.3, chance=lambda: 0.5)
    assert delays(backoff, 3) == [1.15, 2.3, 4.6]


def test_the_longest_delay_gets_jitter_too() -> None:
    backoff = Backoff(first_s=60, max_s=60, jitter=0.3, chance=lambda: 1.0)
    assert delays(backoff, 2) == [78, 78]


def test_reset_begins_again() -> None:
    backoff = Backoff(first_s=1, max_s=60, jitter=0, chance=lambda: 0.0)
    delays(backoff, 5)
    backoff.reset()
    assert backoff.next_s() == 1


def test_a_first_delay_beyond_the_longest_is_cut() -> None:
    assert Backoff(first_s=5, max_s=2, jitter=0).next_s() == 2
