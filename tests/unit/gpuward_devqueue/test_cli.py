from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from gpuward_devqueue.cli import main
from gpuward_devqueue.misbehaviour import Fault
from support.http_calls import call
from support.worker_client import WorkerClient


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the program on a free port; yields it and the ready line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuward_devqueue", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def url_in(ready: str, scheme: str) -> str:
    found = re.search(rf"{scheme}://127\.0\.0\.1:\d+", ready)
    assert found is not None, ready
    return found.group()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_and_stops_on_a_signal(number: signal.Signals) -> None:
    with running() as (process, ready):
        assert call("GET", url_in(ready, "http") + "/health").json["status"] == "ok"
        assert "curl -s http://" in ready
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.slow
def test_options_reach_the_queue(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("tok-abc\n")
    with running(
        "--token-file", str(token_file), "--presign", "--misbehave", "close-mid-job=1,code=1012", "-v"
    ) as (process, ready):
        with WorkerClient(url_in(ready, "ws"), token="tok-abc") as worker:
            worker.register()
            call("POST", url_in(ready, "http") + "/jobs", {"payload": {}})
            assert "/results/" in worker.receive_job()["result_upload_url"]
            assert worker.receive_close() == 1012
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert "devqueue.worker_registered" in errors
    assert "tok-abc" not in errors + ready


def test_a_port_in_use_ends_with_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--lease-s", "0"], "lease_s = 0"),
        (["--misbehave", "explode"], "no misbehaviour is called 'explode'"),
        (["--token-file", "/nonexistent/token"], "--token-file /nonexistent/token"),
        (["--port", "70000"], "port = 70000"),
    ],
)
def test_options_it_cannot_run_with_end_with_code_2(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    assert complaint in capsys.readouterr().err


def test_an_empty_token_file_does_not_open_the_door(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("\n")
    assert main(["--token-file", str(token_file)]) == 2
    assert "empty" in capsys.readouterr().err


def test_help_names_every_option_and_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    words = ["--lease-s", "--presign", "--token-file", "--payload-url-threshold", "CASOLA_WS_URL", "/ledger"]
    assert [word for word in words + [fault.value for fault in Fault] if word not in text] == []
