from __future__ import annotations

import pytest

from gpuward_executors.backends.echo import EchoBackend
from gpuward_executors.backends.registry import Registry
from gpuward_executors.errors import JobRefused


def test_a_task_goes_to_its_backend_and_any_other_to_the_fallback() -> None:
    known, other = EchoBackend(), EchoBackend()
    registry = Registry({"a": known}, fallback=other)
    assert registry.choose("a", "c") is known
    assert registry.choose("b", "c") is other


def test_a_task_that_nobody_does_is_refused_in_the_words_of_the_protocol() -> None:
    with pytest.raises(JobRefused, match=r"^Unsupported task: 'fal/x' \(config_id=cfg\)$"):
        Registry({}).choose("fal/x", "cfg")
