from __future__ import annotations

import inspect

import pytest

from gpuward_supervisor.processes.base import ProcessHost
from gpuward_supervisor.processes.posix import PosixProcessHost

METHODS = [
    name for name, _ in inspect.getmembers(ProcessHost, inspect.isfunction) if not name.startswith("_")
]


def test_the_protocol_is_what_the_loop_drives() -> None:
    assert {"spawn", "kill", "collect", "fileno", "next_deadline", "kill_all", "close"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_real_host_has_every_method_as_declared(name: str) -> None:
    declared = inspect.signature(getattr(ProcessHost, name))
    assert inspect.signature(getattr(PosixProcessHost, name)) == declared
