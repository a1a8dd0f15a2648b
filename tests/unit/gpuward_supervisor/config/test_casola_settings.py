"""The connection's settings, and what cannot be one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuward_supervisor.config.casola_settings import default_worker_id
from support.configuration import configured, problems


def test_the_connection_is_made_of_file_and_environment(tmp_path: Path) -> None:
    toml = (
        '[source.casola]\nurl = "ws://file"\nworker_id = "w"\n[limits]\ninbound_max_bytes = 4096\n'
        "transfer_max_bytes = 8192"
    )
    casola = configured(tmp_path, toml, environ={"CASOLA_API_TOKEN": "hunter2"}).casola
    assert (casola.url, casola.config_id, casola.worker_id) == ("wss://queue.example", "my-model", "w")
    assert casola.token.reveal() == "hunter2"
    assert (casola.inbound_max_bytes, casola.transfers.max_bytes) == (4096, 8192)


@pytest.mark.parametrize(
    ("environ", "worker_id"),
    [
        ({"RUNPOD_POD_ID": "p1", "CONTAINER_ID": "c1"}, "runpod-p1"),
        ({"CONTAINER_ID": "c1"}, "vast-c1"),
        ({"CONTAINER_ID": " "}, "vast-{pid}"),
        ({}, "vast-{pid}"),
    ],
)
def test_the_default_worker_id_is_the_references(environ: dict[str, str], worker_id: str) -> None:
    assert default_worker_id(environ) == worker_id.format(pid=os.getpid())


def test_the_nodes_name_is_its_worker_id_unless_that_is_said(tmp_path: Path) -> None:
    toml = '[node]\nname = "node-7"'
    assert configured(tmp_path, toml).casola.worker_id == "node-7"
    both = configured(tmp_path, toml, environ={"CASOLA_INSTANCE_ID": "vast-1"})
    assert (both.name, both.casola.worker_id) == ("node-7", "vast-1")
    assert configured(tmp_path, environ={"CASOLA_INSTANCE_ID": "vast-1"}).name == "vast-1"


def test_what_is_required_is_missed_by_all_its_names(tmp_path: Path) -> None:
    assert problems(tmp_path, "", required=False) == [
        f"node.toml: source.casola.{key}: is required, and missing; write {example}, or set {variable}"
        for key, example, variable in [
            ("url", 'url = "wss://queue.example"', "CASOLA_WS_URL"),
            ("config_id", 'config_id = "my-model"', "CASOLA_CONFIG_ID"),
        ]
    ]


def test_a_url_of_the_wrong_type_is_not_missed_as_well(tmp_path: Path) -> None:
    assert len(problems(tmp_path, '[source.casola]\nurl = 3\nconfig_id = "c"', required=False)) == 1


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://h", "expected a WebSocket URL; write wss:// for https://"),
        ("http://h", "expected a WebSocket URL; write ws:// for http://"),
        ("h:8788", "expected ws:// or wss:// and a host"),
        ("ws://", "expected ws:// or wss:// and a host"),
        ("ws://h:0", "expected ws:// or wss:// and a host"),
        ("ws://h:99999", "is not a URL: "),
        ("ws://me:hunter2@h", "expected a URL without user and password; use a token"),
        ("ws://h/?token=hunter2", "expected a URL without query"),
        ("ws://h/a b", "expected a URL without query, fragment and white space"),
    ],
)
def test_a_url_that_cannot_be_dialled_is_refused(tmp_path: Path, url: str, problem: str) -> None:
    found = problems(tmp_path, environ={"CASOLA_WS_URL": url})
    assert len(found) == 1
    assert f": {problem}" in found[0]
    assert "hunter2" not in found[0]


@pytest.mark.parametrize(
    "url", ["ws://localhost:8788", "wss://us.example/base/", "ws://[::1]:8788", "ws://h/"]
)
def test_urls_of_queues_are_taken_as_they_are(tmp_path: Path, url: str) -> None:
    assert configured(tmp_path, environ={"CASOLA_WS_URL": url}).casola.url == url


@pytest.mark.parametrize("url", ["ws://h/ws", "ws://h/base/ws/"])
def test_a_url_that_ends_with_what_is_appended_is_pointed_out(tmp_path: Path, url: str) -> None:
    config = configured(tmp_path, environ={"CASOLA_WS_URL": url, "GPUWARD_GPUS": "none"})
    assert config.casola.url == url
    assert config.warnings[0].startswith("CASOLA_WS_URL ends with /ws, and /ws is appended to it")
