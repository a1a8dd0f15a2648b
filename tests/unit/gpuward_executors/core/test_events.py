from __future__ import annotations

import typing

import msgspec
import pytest

from gpuward_executors.core import events
from gpuward_executors.core.events import Event, ExecutorEvent
from gpuward_ipc.messages import FromSupervisor


def test_every_declared_event_and_every_message_of_the_supervisor_can_be_decided_upon() -> None:
    declared = {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
    }
    assert declared | set(typing.get_args(FromSupervisor)) == set(typing.get_args(ExecutorEvent))


@pytest.mark.parametrize("kind", typing.get_args(ExecutorEvent))
def test_events_cannot_be_changed(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen
