from __future__ import annotations

import inspect

import msgspec
import pytest

from gpuward_supervisor.core import commands as do
from gpuward_supervisor.secrets import Secret
from gpuward_supervisor.sources.base import CasolaSettings, SourceCommand


def test_the_token_is_neither_shown_nor_encoded() -> None:
    settings = CasolaSettings(url="ws://q", config_id="c", worker_id="w", token=Secret("hunter2"))
    assert "hunter2" not in repr(settings)
    with pytest.raises(TypeError):
        msgspec.json.encode(settings)


def test_the_defaults_are_those_of_the_queues_own_worker() -> None:
    settings = CasolaSettings(url="ws://q", config_id="c", worker_id="w")
    assert (settings.ping_interval_s, settings.pong_timeout_s) == (30, 10)
    assert (settings.backoff_first_s, settings.backoff_max_s, settings.backoff_jitter) == (1, 60, 0.3)
    assert (settings.transfers.get_timeout_s, settings.transfers.put_timeout_s) == (30, 60)


def test_every_command_that_names_a_source_is_a_sources_command() -> None:
    named = {
        kind
        for _, kind in inspect.getmembers(do, inspect.isclass)
        if issubclass(kind, do.Command) and "source" in kind.__struct_fields__
    }
    kept_by_the_journal = {do.Remember, do.Unremember}
    assert set(SourceCommand.__args__) == named - kept_by_the_journal
