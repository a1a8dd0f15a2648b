from __future__ import annotations

import inspect

import pytest

from gpuward_executors.engines.base import Engine
from gpuward_executors.engines.echo import EchoEngine
from gpuward_executors.engines.server import ServerEngine

ASKED = sorted(name for name in vars(Engine) if not name.startswith("_"))


@pytest.mark.parametrize("kind", [EchoEngine, ServerEngine])
@pytest.mark.parametrize("name", ASKED)
def test_every_engine_does_what_is_asked_of_engines(kind: type, name: str) -> None:
    assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(Engine, name))
    assert inspect.iscoroutinefunction(getattr(kind, name)) is inspect.iscoroutinefunction(
        getattr(Engine, name)
    )
