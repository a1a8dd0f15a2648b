"""`gpuward config schema` prints one JSON document."""

from __future__ import annotations

import json

import pytest

from gpuward_supervisor.cli.command import parser_of
from gpuward_supervisor.cli.config_schema import COMMAND


def test_it_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMAND.run(parser_of(COMMAND).parse_args([])) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["title"] == "gpuward configuration"
    assert set(schema["$defs"]["ConfigFile"]["properties"]) == {
        "node",
        "source",
        "executors",
        "executor",
        "restarts",
        "dispatch",
        "limits",
    }
