from __future__ import annotations

import pytest

from gpuward_devqueue import errors
from gpuward_devqueue.errors import AlreadyTerminal, DevQueueError, StillWaiting, UnknownJob


def test_every_error_of_the_package_has_one_root() -> None:
    found = [thing for thing in vars(errors).values() if isinstance(thing, type)]
    assert found
    assert [kind for kind in found if not issubclass(kind, DevQueueError)] == []


def test_errors_about_a_job_name_it() -> None:
    assert "'job-7'" in str(UnknownJob("job-7"))
    assert "completed" in str(AlreadyTerminal("job-7", "completed"))


def test_a_wait_that_ran_out_is_also_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        raise StillWaiting("too long")
