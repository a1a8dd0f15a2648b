"""A real executor process with a real simulated engine, driven over a real ROUTER."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuward_executors.engines import group
from gpuward_ipc.messages import (
    Cancel,
    Cancelled,
    EngineExited,
    Failed,
    Goodbye,
    Heartbeat,
    Hello,
    Ready,
    Stop,
    Succeeded,
    Welcome,
)
from gpuward_ipc.startup import EngineKind, EngineSpec
from gpuward_ipc.types import INLINE_BODY_MAX_BYTES, Fault, RunId
from support.executor_process import ECHO, ExecutorProcess, free_port, simulated

pytestmark = pytest.mark.slow

#: What an idle executor may weigh, without its engine.
RSS_MAX_BYTES = 45 * 1024 * 1024
#: Long enough that no test ever sees its end.
SLOW = ("--token-s", "5")


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not within 20 s: {what}"
        time.sleep(0.01)


def busy(executor: ExecutorProcess, *runs: int) -> None:
    """Give it runs that take for ever, and wait until the engine works on all of them."""
    for run in runs:
        executor.assign(run, chat("slow"))
    port = executor.start.engine.port
    wait_for(lambda: metric(port, "vllm:num_requests_running") == len(runs), "the engine runs them")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorProcess]:
    """One executor for all tests that leave it alive."""
    with ExecutorProcess(tmp_path_factory.mktemp("x"), simulated()) as executor:
        ready = executor.make_ready()
        assert ready.slots == 4
        assert ready.engine_pid > 0
        yield executor


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> int:
    """A run number of this test's own."""
    _numbers[0] += 10
    return _numbers[0]


_numbers = [0]


# ---------------------------------------------------------------- jobs on a living engine


def test_a_chat_job_gets_its_own_answer(shared: ExecutorProcess, runs: int) -> None:
    shared.assign(runs, chat("hello", task="openai/chat-completion", model="ignored"))
    message, body = shared.outcome_of(runs)
    assert body is not None
    assert message == Succeeded(RunId(runs), len(body))
    result = json.loads(body)
    assert (result["status"], result["config_id"], result["task"]) == (
        "success",
        "cfg",
        "openai/chat-completion",
    )
    assert result["completion"]["model"] == "tiny"
    assert "hello" in result["completion"]["choices"][0]["message"]["content"]
    shared.ack(runs)


def test_an_embedding_job_gets_its_vectors(shared: ExecutorProcess, runs: int) -> None:
    shared.assign(runs, {"input": "words", "dimensions": 8}, task="openai/embeddings")
    _, body = shared.outcome_of(runs)
    assert body is not None
    [embedding] = json.loads(body)["embeddings"]
    assert (embedding["index"], len(embedding["embedding"])) == (0, 8)
    shared.ack(runs)


@pytest.mark.parametrize(
    ("payload", "task", "text"),
    [
        ({"messages": []}, "", "No messages provided in payload"),
        ([1], "", "The payload must be a JSON object"),
        ({}, "openai/embeddings", "No input provided in payload"),
        (chat("x"), "fal/text-to-image", "Unsupported task: 'fal/text-to-image' (config_id=cfg)"),
        (chat("x", temperature=-5), "", "Error code: 400 - "),
    ],
)
def test_a_bad_job_is_the_jobs_own_fault(
    shared: ExecutorProcess, runs: int, payload: object, task: str, text: str
) -> None:
    shared.assign(runs, payload, task=task)
    message, _ = shared.outcome_of(runs)
    assert isinstance(message, Failed)
    assert (message.fault, message.error.startswith(text)) == (Fault.JOB, True), message
    shared.ack(runs)


@pytest.mark.parametrize("kind", ["error500", "busy503", "garbage", "abort-answer", "drop"])
def test_a_misbehaving_engine_that_lives_costs_its_job_a_try_and_nothing_else(
    shared: ExecutorProcess, runs: int, kind: str
) -> None:
    shared.assign(runs, chat(f"FAULT:{kind}"))
    message, _ = shared.outcome_of(runs)
    assert isinstance(message, Failed), message
    assert message.fault is Fault.ENGINE
    shared.assign(runs + 1, chat("next"))
    assert isinstance(shared.outcome_of(runs + 1)[0], Succeeded)
    shared.ack(runs, runs + 1)


def test_a_result_too_large_for_a_frame_comes_as_a_private_file(shared: ExecutorProcess, runs: int) -> None:
    shared.assign(runs, chat(f"FAULT:big:{2 * INLINE_BODY_MAX_BYTES}"))
    message, body = shared.outcome_of(runs)
    assert isinstance(message, Succeeded), message
    assert body is None
    path = Path(message.body_path)
    assert path.parent == Path(shared.start.spool_dir)
    assert path.stat().st_size == message.body_bytes > INLINE_BODY_MAX_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_bytes())["status"] == "success"
    shared.ack(runs)


def test_a_repeated_assignment_of_an_ended_run_repeats_the_outcome_and_not_the_work(
    shared: ExecutorProcess, runs: int
) -> None:
    shared.assign(runs, chat("once"))
    first = shared.outcome_of(runs)
    shared.assign(runs, chat("once"))
    # Equal to the microsecond in ``processed_at``: it was made once.
    assert shared.outcome_of(runs) == first
    shared.ack(runs)
    shared.until(Heartbeat, lambda beat: RunId(runs) not in beat.runs)


def test_an_idle_executor_is_light(shared: ExecutorProcess) -> None:
    assert shared.rss_bytes() < RSS_MAX_BYTES


def test_the_engine_knows_its_tags_and_nothing_of_the_link(shared: ExecutorProcess) -> None:
    ready = next(got.message for got in shared.received if isinstance(got.message, Ready))
    content = Path(f"/proc/{ready.engine_pid}/environ").read_bytes().decode()
    environ = dict(item.split("=", 1) for item in content.split("\0") if item)
    ours = {name: value for name, value in environ.items() if name.startswith("GPUWARD_")}
    assert ours == {"GPUWARD_EXECUTOR": "gpu0.1", "GPUWARD_NODE": "test-node"}
    assert environ["TMPDIR"] == str(shared.work_dir / "tmp")
    assert os.getpgid(ready.engine_pid) == shared.process.pid


def test_a_dump_of_all_threads_can_be_asked_for_at_any_time(shared: ExecutorProcess, runs: int) -> None:
    os.kill(shared.process.pid, signal.SIGUSR2)
    shared.assign(runs, chat("still there"))
    assert isinstance(shared.outcome_of(runs)[0], Succeeded)
    assert "most recent call first" in (shared.folder / "log.jsonl").read_text()
    shared.ack(runs)


# ---------------------------------------------------------------- deaths


@pytest.mark.parametrize("kind", ["segv", "kill", "exit1", "oom"])
def test_the_death_of_an_engine_is_told_once_and_no_run_is_blamed(tmp_path: Path, kind: str) -> None:
    with ExecutorProcess(tmp_path, simulated(*SLOW)) as executor:
        executor.make_ready()
        busy(executor, 1, 2)
        executor.assign(3, chat(f"FAULT:{kind}"))
        exited, _ = executor.until(EngineExited)
        assert not exited.permanent
        assert exited.detail.startswith("the engine ")
        assert executor.exit_code() == 70
        executor.router.socket.poll(100)
        executor.received += executor.router.receive()
        blamed = [got.message for got in executor.received if isinstance(got.message, Failed | Succeeded)]
        assert blamed == []


def test_a_killed_server_is_noticed_at_once_with_its_signal(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, simulated(*SLOW)) as executor:
        ready = executor.make_ready()
        busy(executor, 1)
        os.kill(ready.engine_pid, signal.SIGKILL)
        exited, _ = executor.until(EngineExited)
        assert (exited.exit_code, exited.signal) == (None, 9)
        assert "signal 9 (SIGKILL)" in exited.detail
        assert executor.exit_code() == 70
        # Its children live on, as vLLM's do: they are the supervisor's to sweep, by group and tag.
        assert executor.others() != []


def test_a_command_that_does_not_exist_is_permanent(tmp_path: Path) -> None:
    spec = EngineSpec(kind=EngineKind.VLLM, port=free_port(), model="m", serve_command="no-such-vllm")
    with ExecutorProcess(tmp_path, spec) as executor:
        executor.welcome()
        exited, _ = executor.until(EngineExited)
        assert exited.permanent
        assert "no-such-vllm" in exited.detail
        assert executor.exit_code() == 71


def test_an_engine_that_is_not_ready_in_time_is_killed(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, simulated("--startup-s", "600", start_timeout_s=0.5)) as executor:
        executor.welcome()
        exited, _ = executor.until(EngineExited)
        assert "was not ready 0.5 s after its start" in exited.detail
        assert exited.signal == 9
        assert executor.exit_code() == 70


def test_when_the_supervisor_is_gone_nothing_of_the_group_is_left(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, simulated(*SLOW)) as executor:
        executor.make_ready()
        busy(executor, 1)
        assert len(executor.others()) >= 2
        os.close(executor.death_write)
        assert executor.exit_code() == -signal.SIGKILL
        wait_for(lambda: group.members(executor.process.pid) == [], "the group is gone")


# ---------------------------------------------------------------- cancelling and stopping


def test_a_cancelled_run_leaves_the_engine(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, simulated(*SLOW)) as executor:
        executor.make_ready()
        busy(executor, 1, 2)
        executor.send(Cancel(RunId(1)))
        assert executor.outcome_of(1)[0] == Cancelled(RunId(1))
        port = executor.start.engine.port
        wait_for(lambda: metric(port, "vllm:num_requests_running") == 1, "the engine dropped the request")


def test_runs_beyond_the_slots_wait_and_are_listed(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, simulated(*SLOW), slots=1) as executor:
        executor.make_ready()
        busy(executor, 1)
        executor.assign(2, chat("waits"))
        executor.until(Heartbeat, lambda beat: set(beat.runs) == {1, 2})
        assert metric(executor.start.engine.port, "vllm:num_requests_running") == 1
        executor.send(Cancel(RunId(2)))
        assert executor.outcome_of(2)[0] == Cancelled(RunId(2))


def test_a_stop_ends_the_engine_and_says_goodbye(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, simulated(*SLOW)) as executor:
        executor.make_ready()
        busy(executor, 1, 2)
        executor.send(Stop(grace_s=10.0))
        executor.until(Goodbye)
        assert executor.exit_code() == 0
        assert group.members(executor.process.pid) == []


def test_an_engine_that_hangs_when_it_is_stopped_is_killed_with_its_children(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, simulated("--term-behaviour", "hang", *SLOW)) as executor:
        executor.make_ready()
        busy(executor, 1)
        executor.send(Stop(grace_s=0.3))
        executor.until(Goodbye)
        assert executor.exit_code() == 0
        assert group.members(executor.process.pid) == []


def test_a_stop_during_the_engines_start_is_a_stop(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, simulated("--startup-s", "600")) as executor:
        executor.welcome()
        executor.until(Heartbeat, lambda beat: beat.seq > 1)
        executor.send(Stop(grace_s=1.0))
        executor.until(Goodbye)
        assert executor.exit_code() == 0


def test_a_term_from_outside_is_a_stop(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, ECHO) as executor:
        executor.make_ready()
        os.kill(executor.process.pid, signal.SIGTERM)
        executor.until(Goodbye)
        assert executor.exit_code() == 0


# ---------------------------------------------------------------- the link


def test_hello_is_repeated_until_it_is_answered(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, ECHO) as executor:
        first, _ = executor.until(Hello)
        assert first.pid == executor.process.pid
        assert executor.until(Hello)[0] == first
        executor.send(Welcome(heartbeat_s=0.1))
        executor.until(Ready)


def test_a_result_is_repeated_until_it_is_acknowledged(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, ECHO) as executor:
        executor.make_ready()
        executor.assign(1, {"a": 1})
        first = executor.outcome_of(1)
        assert executor.outcome_of(1) == first
        executor.ack(1)
        executor.until(Heartbeat, lambda beat: beat.runs == ())


def test_the_peer_of_a_hello_is_the_process_that_was_spawned(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path, ECHO) as executor:
        executor.until(Hello)
        assert executor.received[0].peer_pid in {0, executor.process.pid}
