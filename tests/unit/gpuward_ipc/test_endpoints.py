"""Names and places of the executor link."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuward_ipc.endpoints import SOCKET_PATH_MAX_BYTES, identity, link_endpoint, parse_identity
from gpuward_ipc.types import ExecutorName, Incarnation


def test_identity_and_its_parts_are_inverse() -> None:
    assert parse_identity(identity(ExecutorName("gpu0-1"), Incarnation(12))) == ("gpu0-1", 12)


def test_a_name_may_hold_dots() -> None:
    assert parse_identity(b"a.b.3") == ("a.b", 3)


@pytest.mark.parametrize(
    "value", [b"", b"gpu0", b".1", b"gpu0.", b"gpu0.x", b"gpu0.-1", b"\xff\xfe.1", "g.²".encode()]
)
def test_foreign_identities_are_nobody(value: bytes) -> None:
    assert parse_identity(value) is None


def test_the_socket_lies_in_the_runtime_directory() -> None:
    assert link_endpoint(Path("/run/gpuward")) == "ipc:///run/gpuward/executors.sock"


def test_a_runtime_directory_that_is_too_long_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"node\.runtime_dir"):
        link_endpoint(Path("/" + "x" * SOCKET_PATH_MAX_BYTES))
