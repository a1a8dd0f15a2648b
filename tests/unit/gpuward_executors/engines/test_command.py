from __future__ import annotations

from gpuward_executors.engines.command import argv
from gpuward_ipc.startup import EngineKind, EngineSpec


def test_placeholders_are_filled_in_and_other_braces_left_alone() -> None:
    spec = EngineSpec(
        kind=EngineKind.COMMAND,
        host="127.0.0.1",
        port=9000,
        model="m",
        served_model_name="s",
        command=(
            "serve",
            "--at={host}:{port}",
            "{model}",
            "{served_model_name}",
            "{gpus}",
            '{"a":{}}',
            "{no}",
        ),
    )
    assert argv(spec, (0, 2)) == ["serve", "--at=127.0.0.1:9000", "m", "s", "0,2", '{"a":{}}', "{no}"]
