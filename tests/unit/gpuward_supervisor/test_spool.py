from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from gpuward_supervisor.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.make()
    return spool


def test_a_written_body_is_whole_and_private(spool: Spool) -> None:
    size, crc = spool.write("a.body", b"x" * 3_000_000)
    assert size == 3_000_000
    assert spool.is_whole("a.body", size, crc)
    assert spool.path("a.body").stat().st_mode & 0o777 == 0o600
    assert spool.path("a.body").parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [b"", b"y" * 3, b"xxxx", None])
def test_a_damaged_or_missing_body_is_not_whole(spool: Spool, damage: bytes | None) -> None:
    size, crc = spool.write("a.body", b"xxx")
    spool.path("a.body").unlink()
    if damage is not None:
        spool.path("a.body").write_bytes(damage)
    assert not spool.is_whole("a.body", size, crc)


def test_a_body_on_the_same_file_system_is_linked_not_copied(spool: Spool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"body")
    size, crc = spool.take_over("a.body", source)
    assert os.path.samefile(source, spool.path("a.body"))
    source.unlink()
    assert spool.is_whole("a.body", size, crc)


def test_a_body_on_another_file_system_is_copied(spool: Spool) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as source:
        if os.stat(source.name).st_dev == spool.path("").stat().st_dev:
            pytest.skip("needs /dev/shm and the temporary directory on two file systems")
        source.write(b"body" * 600_000)
        source.flush()
        size, crc = spool.take_over("a.body", Path(source.name))
    assert size == 2_400_000
    assert spool.is_whole("a.body", size, crc)


def test_an_existing_body_is_never_overwritten(spool: Spool) -> None:
    spool.write("a.body", b"first")
    with pytest.raises(FileExistsError):
        spool.write("a.body", b"second")
    assert spool.path("a.body").read_bytes() == b"first"


def test_files_without_a_record_are_removed(spool: Spool) -> None:
    for name in ("kept", "orphan"):
        spool.write(name, b"x")
    spool.keep_only({"kept"})
    assert [file.name for file in spool.path("").iterdir()] == ["kept"]


def test_removing_what_is_gone_is_harmless(spool: Spool) -> None:
    spool.remove("never-there")
    assert spool.new_name() != spool.new_name()
