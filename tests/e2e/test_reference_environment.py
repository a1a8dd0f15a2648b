"""A container that ran the reference worker starts unchanged: its environment alone, no file, no GPU."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.ledger import LinkNote
from gpuward_devqueue.records import Status
from gpuward_devqueue.thread import DevQueueThread
from support.node import Node, free_port_block, process_cmdline, tagged

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TOKEN = "canary-queue-token-5150"
HUB_TOKEN = "hf_canary_model_token_4711"


@pytest.fixture
def queue() -> Iterator[DevQueueThread]:
    with DevQueueThread(DevQueueConfig(token=TOKEN)) as queue:
        yield queue


@pytest.fixture
def node(tmp_path: Path, queue: DevQueueThread) -> Iterator[Node]:
    """As the reference's image starts: ``VLLM_SERVE_COMMAND`` is the hook for the engine."""
    vllm = tmp_path / "vllm"
    vllm.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpuward_executors.simulated "$@"\n')
    vllm.chmod(vllm.stat().st_mode | stat.S_IXUSR)
    environment = {
        "CASOLA_WS_URL": queue.ws_url + "/",
        "CASOLA_CONFIG_ID": "my-config",
        "CASOLA_INSTANCE_ID": "vast-4242",
        "CASOLA_API_TOKEN": TOKEN,
        "CASOLA_CAPACITY": "6",
        "CASOLA_MAX_JOBS": "1",
        "CASOLA_LEASE_SECONDS": "30",
        "VLLM_SERVE_COMMAND": str(vllm),
        "VLLM_MODEL": "some/model",
        "VLLM_SERVED_MODEL_NAME": "served",
        "VLLM_PORT": str(free_port_block(16)),
        "VLLM_EXTRA_ARGS": "--max-model-len 2048 --served-note 'two words'",
        "VLLM_STARTUP_TIMEOUT": "60",
        "HF_TOKEN": HUB_TOKEN,
        "GPUWARD_STATE_DIR": str(tmp_path / "n" / "state"),
        "GPUWARD_RUNTIME_DIR": str(tmp_path / "n" / "run"),
        "GPUWARD_LOG_FORMAT": "json",
    }
    node = Node(tmp_path / "n", queue.ws_url, environment=environment)
    node.arguments = []
    with node:
        node.wait_ready(1)
        queue.wait_workers(1, 20)
        yield node


def test_it_registers_and_works(queue: DevQueueThread, node: Node) -> None:
    (worker,) = queue.workers()
    assert (worker.worker_id, worker.config_id, worker.capacity) == ("vast-4242", "my-config", 6)
    payload = {
        "task": "openai/chat-completion",
        "model": "ignored",
        "messages": [{"role": "user", "content": "hi"}],
    }
    job = queue.submit(payload, config_id="my-config")
    view = queue.wait_terminal([job], 20)[job]
    assert view.status is Status.COMPLETED, view.error
    assert b'"model":"served"' in bytes(view.result or b"")
    assert node.stop() == 0
    assert any(entry.note is LinkNote.DRAINED for entry in queue.ledger().connections)


def test_the_engines_command_line_is_the_references(node: Node) -> None:
    (engine,) = {
        tuple(process.cmdline())
        for process, _ in tagged(node.state_dir, node.runtime_dir)
        if "gpuward_executors.simulated serve" in process_cmdline(process)
    }
    port = engine[engine.index("--port") + 1]
    assert engine[engine.index("serve") :] == (
        *("serve", "some/model", "--host", "127.0.0.1", "--port", port),
        *("--served-model-name", "served", "--max-model-len", "2048", "--served-note", "two words"),
    )


def test_no_secret_shows_anywhere(queue: DevQueueThread, node: Node) -> None:
    """Not in the log, not on a command line, not in the environment of a process that does not need it."""
    processes = list(tagged(node.state_dir, node.runtime_dir))
    assert processes
    for process, _ in processes:
        assert TOKEN not in str(process.environ())
        assert TOKEN not in process_cmdline(process) and HUB_TOKEN not in process_cmdline(process)
    assert node.stop() == 0
    text = str(node.lines)
    assert TOKEN not in text and HUB_TOKEN not in text
    assert TOKEN not in "".join(
        path.read_text(errors="replace") for path in node.folder.rglob("*") if path.is_file()
    )
