"""The limit on open files: raised where it may be, a clear refusal where it may not."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from gpuward_supervisor.processes import open_files


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """The limits of this process, put back afterwards; only the soft one may be changed."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_usual_node_fits_the_usual_limit() -> None:
    assert open_files.needed(executors=8, slots_max=256) <= 1024


def test_more_executors_and_wider_ones_need_more() -> None:
    assert open_files.needed(200, 1) > open_files.needed(100, 1)
    assert open_files.needed(1, 4000) > 4000


def test_a_limit_that_suffices_stays_as_it_is(limits: tuple[int, int]) -> None:
    open_files.ensure(limits[0])
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_a_soft_limit_that_is_too_low_is_raised(limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0] - 1, limits[1]))
    open_files.ensure(limits[0])
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_a_hard_limit_that_is_too_low_is_refused_with_what_to_do(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A hard limit that is lowered once cannot be raised again by a plain user: only said here.
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(OSError, match=r"open files is 64, this node needs 72: raise it .*LimitNOFILE"):
        open_files.ensure(72)
