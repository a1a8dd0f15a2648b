from __future__ import annotations

import pytest

from gpuward_executors.backends.base import Backend, ImmediateBackend
from gpuward_executors.backends.echo import EchoBackend
from gpuward_executors.backends.vllm.backend import VllmBackend


@pytest.mark.parametrize("base", [Backend, ImmediateBackend])
def test_a_backend_must_say_how_it_works(base: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        base()


def test_a_backend_either_takes_time_or_takes_none() -> None:
    assert issubclass(VllmBackend, Backend)
    assert not issubclass(VllmBackend, ImmediateBackend)
    assert issubclass(EchoBackend, ImmediateBackend)
    assert not issubclass(EchoBackend, Backend)
