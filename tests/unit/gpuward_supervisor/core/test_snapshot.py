from __future__ import annotations

import msgspec

from gpuward_supervisor.core import snapshot
from gpuward_supervisor.core.events import StopRequested
from support.core_stage import PERSISTED, Stage


def test_a_busy_node_is_shown_as_it_is() -> None:
    stage = Stage((1, 1), backoff_first_s=10.0, upload_threshold_bytes=5)
    stage.offer("a", 10, mode=PERSISTED, result_upload_url="https://up")
    stage.succeed("gpu0", 1, 11)
    stage.offer("b", 20, mode=PERSISTED)
    stage.exit("gpu0", signal=9)
    stage.sweep("gpu0")
    stage.offer("c", 30)
    stage.offer("d", None, payload_url="https://store")
    stage.offer("e", 40)
    stage.revoke("b")
    stage.now_s += 2.0
    shown = snapshot.take(stage.state, stage.now_s)
    assert (shown.phase, shown.stop_reason, shown.journal_ok) == ("running", "", True)
    assert (shown.slots_alive, shown.slots_planned) == (1, 2)
    assert (shown.jobs_fetching, shown.jobs_queued, shown.jobs_running, shown.runs_unwanted) == (1, 2, 0, 1)
    assert (shown.reports_owed, shown.reports_uploading) == (1, 1)
    dead, alive = shown.executors
    assert (dead.phase, dead.slots, dead.spawn_in_s, dead.ready_for_s) == ("backoff", 0, 8.0, None)
    assert (alive.phase, alive.runs, alive.ready_for_s, alive.beat_age_s) == ("ready", 1, 2.0, 2.0)
    (source,) = shown.sources
    assert (source.registered, source.capacity, source.leases, source.reports_owed) == (True, 2, 1, 1)
    assert shown.counters["offered"] == 5
    assert shown.counters["deaths"] == 1


def test_a_node_that_stops_says_why() -> None:
    stage = Stage((1,))
    stage.offer("a", 10)
    stage.feed(StopRequested(reason="SIGTERM"))
    shown = snapshot.take(stage.state, stage.now_s)
    assert (shown.phase, shown.stop_reason) == ("draining", "SIGTERM")
    assert shown.sources[0].drain_announced


def test_a_snapshot_is_plain_data_before_the_start_and_after() -> None:
    for stage in (Stage((1,), warm=False), Stage((1,))):
        shown = snapshot.take(stage.state, stage.now_s)
        assert msgspec.json.decode(msgspec.json.encode(shown), type=snapshot.Snapshot) == shown
