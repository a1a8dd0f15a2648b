from __future__ import annotations

import typing

import msgspec
import pytest

from gpuward_executors.core import commands
from gpuward_executors.core.commands import ExecutorCommand, ExecutorCommandBase


def test_every_declared_command_is_in_the_union() -> None:
    declared = {
        kind
        for kind in vars(commands).values()
        if isinstance(kind, type)
        and issubclass(kind, ExecutorCommandBase)
        and kind is not ExecutorCommandBase
    }
    assert declared == set(typing.get_args(ExecutorCommand))


@pytest.mark.parametrize("kind", typing.get_args(ExecutorCommand))
def test_commands_cannot_be_changed(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen
