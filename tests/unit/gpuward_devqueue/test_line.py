from __future__ import annotations

from gpuward_devqueue.line import Line
from gpuward_devqueue.records import JobId


def a_line(gone: set[str] | None = None) -> Line:
    left = gone if gone is not None else set()
    return Line(lambda job_id: job_id not in left)


def anyone(config_id: str | None) -> bool:
    return True


def test_jobs_come_out_in_the_order_of_their_places_across_lanes() -> None:
    line = a_line()
    line.add("a", 2, JobId("second"))
    line.add(None, 1, JobId("first"))
    line.add("b", 3, JobId("third"))
    assert [line.take(anyone) for _ in range(4)] == ["first", "second", "third", None]


def test_a_lane_nobody_serves_does_not_hold_up_the_others() -> None:
    line = a_line()
    line.add("nobody", 1, JobId("stuck"))
    line.add("a", 2, JobId("next"))
    assert line.take(lambda config_id: config_id == "a") == "next"
    assert line.take(lambda config_id: config_id == "a") is None
    assert line.take(anyone) == "stuck"


def test_jobs_that_ended_while_they_waited_are_skipped() -> None:
    gone = {"one", "three"}
    line = a_line(gone)
    for place, name in enumerate(("one", "two", "three")):
        line.add(None, place, JobId(name))
    assert line.take(anyone) == "two"
    assert line.take(anyone) is None


def test_a_job_that_comes_back_keeps_its_place() -> None:
    line = a_line()
    line.add(None, 1, JobId("first"))
    line.add(None, 2, JobId("second"))
    assert line.take(anyone) == "first"
    line.add(None, 1, JobId("first"))
    assert line.take(anyone) == "first"
