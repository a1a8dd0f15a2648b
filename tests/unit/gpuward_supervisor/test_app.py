"""The composition root: it starts only where it may, says why not, and takes everything apart again."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs

from gpuward_supervisor import app
from gpuward_supervisor.config.node import NodeConfig
from gpuward_supervisor.inlets import ExecutorInlet, ProcessInlet
from gpuward_supervisor.journal import Journal
from gpuward_supervisor.loop import Inlet, Loop
from support.configuration import configured
from support.node import Node

ECHO = 'kind = "echo"'


@pytest.fixture
def dead_queue() -> Iterator[str]:
    """Address of a queue that refuses every connection: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"ws://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def config(tmp_path: Path, dead_queue: str) -> NodeConfig:
    toml = '[executors]\ngpus = "none"\n[executors.engine]\nkind = "echo"\n'
    return configured(tmp_path, toml, environ={"CASOLA_WS_URL": dead_queue})


# ---------------------------------------------------------------- folders


def test_a_state_directory_has_one_id_however_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    (tmp_path / "link").symlink_to(state)
    before = app._node_id(state)
    state.mkdir()
    monkeypatch.chdir(tmp_path)
    names = [state, tmp_path / "link", Path("state"), tmp_path / "x" / ".." / "state"]
    assert {app._node_id(name) for name in names} == {before}
    assert app._node_id(tmp_path / "other") != before
    assert len(before) == 12 and before.isalnum()


def test_bodies_on_their_way_lie_beside_the_journal_and_old_ones_are_gone(config: NodeConfig) -> None:
    left = config.state_dir / "transit" / "gpu0.1" / "1.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    transit = app._transit_dir(config)
    assert transit == config.state_dir / "transit"
    assert list(transit.iterdir()) == []
    assert transit.stat().st_mode & 0o777 == 0o700


def test_without_a_writable_state_directory_bodies_lie_in_the_runtime_directory(config: NodeConfig) -> None:
    config.state_dir.write_text("in the way")  # permissions would not stop root
    assert app._transit_dir(config) == config.runtime_dir / "transit"
    assert config.state_dir.read_text() == "in the way"


# ---------------------------------------------------------------- refusals


@pytest.fixture
def untouched() -> Iterator[None]:
    """Whatever happens in a run, the process is as before: handlers, descriptors, threads."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    assert after == before
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert [thread.name for thread in threading.enumerate() if "source" in thread.name] == []


def refused(config: NodeConfig) -> str:
    """The reason for which such a node is refused."""
    with capture_logs() as logs:
        assert app.run(config) == 1
    last = logs[-1]
    assert (last["event"], last["log_level"]) == ("node.cannot_run", "error")
    assert "gpuward check" in last["advice"]
    return str(last["error"])


@pytest.mark.usefixtures("untouched")
def test_a_state_directory_in_use_is_refused_with_the_user(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "open", partial(Journal.open, lock_wait_s=0.0))
    with closing(Journal.open(config.state_dir)):
        error = refused(config)
    assert f"another gpuward (pid {os.getpid()}) uses {config.state_dir}" in error
    assert "node.state_dir" in error
    assert not config.runtime_dir.exists()


@pytest.mark.usefixtures("untouched")
def test_a_runtime_directory_with_strangers_is_refused_and_left_alone(config: NodeConfig) -> None:
    config.runtime_dir.mkdir()
    (config.runtime_dir / "thesis.tex").write_text("chapter 1")
    error = refused(config)
    assert "thesis.tex" in error and "node.runtime_dir" in error
    assert [entry.name for entry in config.runtime_dir.iterdir()] == ["thesis.tex"]
    with closing(Journal.open(config.state_dir, lock_wait_s=0.0)) as journal:
        assert journal.failure is None, "the lock was kept"


@pytest.mark.usefixtures("untouched")
def test_a_runtime_directory_that_cannot_be_made_is_refused(config: NodeConfig) -> None:
    config.runtime_dir.write_text("in the way")
    assert str(config.runtime_dir) in refused(config)


# ---------------------------------------------------------------- runs


@pytest.mark.slow
@pytest.mark.usefixtures("untouched")
def test_a_bug_is_told_in_the_log_and_leaves_nothing_behind(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> NoReturn:
        raise RuntimeError("the state makes no sense")

    monkeypatch.setattr(Loop, "run", crash)
    with capture_logs() as logs:
        assert app.run(config) == 1
    (crashed,) = [line for line in logs if line["event"] == "node.crashed"]
    assert crashed["exc_info"] and "journal" in crashed["advice"]
    assert not config.runtime_dir.exists()
    assert not (config.state_dir / "transit").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("untouched")
def test_last_words_of_an_executor_are_heard_before_its_death(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order in which the loop asks what it listens to decides that, where both come at once."""
    asked: list[type[Inlet]] = []

    def look(loop: Loop, _first: Any) -> NoReturn:
        asked.extend(map(type, loop._inlets))
        raise SystemExit

    monkeypatch.setattr(Loop, "run", look)
    with capture_logs(), pytest.raises(SystemExit):
        app.run(config)
    assert asked.index(ExecutorInlet) < asked.index(ProcessInlet)
    assert not config.runtime_dir.exists()


@pytest.mark.slow
def test_a_node_whose_queue_is_away_runs_and_stops_in_order(tmp_path: Path, dead_queue: str) -> None:
    with Node(tmp_path / "n", dead_queue, engine=ECHO, slots=2) as node:
        node.wait_ready(2)
        node.wait_for("source.connect_failed")
        assert node.stop() == 0
        assert node.wait_for("node.stopped", reason="SIGTERM", code=0)
        assert node.survivors() == []
    assert not node.runtime_dir.exists()
    assert not (node.state_dir / "transit").exists()
    with closing(Journal.open(node.state_dir, lock_wait_s=0.0)) as journal:
        assert journal.failure is None


@pytest.mark.slow
def test_a_node_that_cannot_write_its_state_runs_says_so_and_stops_in_order(
    tmp_path: Path, dead_queue: str
) -> None:
    node = Node(tmp_path / "n", dead_queue, engine=ECHO, executors=1)
    # Permissions would not stop root.
    (node.state_dir / "outbox.db").mkdir(parents=True)
    (node.state_dir / "transit").write_text("in the way")
    with node:
        node.wait_ready(1)
        node.wait_for("journal.failed")
        assert node.stop() == 0
        assert node.survivors() == []
    assert not node.runtime_dir.exists()
    assert (node.state_dir / "transit").read_text() == "in the way"
