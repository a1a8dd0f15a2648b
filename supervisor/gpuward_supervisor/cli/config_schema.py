"""``gpuward config schema``: the JSON schema of the configuration file."""

from __future__ import annotations

import argparse

from gpuward_supervisor.cli.command import OK, Command

_EXAMPLES = """\
examples:
  gpuward config schema > gpuward.schema.json

Editors that know TOML take it for completion, for example with a first line in node.toml of
  #:schema ./gpuward.schema.json
"""


def _no_options(_parser: argparse.ArgumentParser) -> None:
    """It has none."""


def _run(_options: argparse.Namespace) -> int:
    import msgspec

    from gpuward_supervisor.config.schema import json_schema

    print(msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode())
    return OK


COMMAND = Command(
    words=("config", "schema"),
    summary="Print the JSON schema of the configuration file.",
    examples=_EXAMPLES,
    add_options=_no_options,
    run=_run,
)
