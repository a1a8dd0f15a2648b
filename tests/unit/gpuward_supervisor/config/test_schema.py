"""The file's types, their JSON schema, and that the pages tell of every key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import msgspec
import pytest
from msgspec import inspect

from gpuward_supervisor.config.environment import VARIABLES, Use
from gpuward_supervisor.config.findings import Findings
from gpuward_supervisor.config.problems import Path, key_text
from gpuward_supervisor.config.schema import ADVICE, CASOLA_NOT_USED_YET, CasolaTable, ConfigFile, json_schema
from gpuward_supervisor.config.walk import sound_part
from support.source_tree import ROOT

PAGE = (ROOT / "docs" / "configuration.md").read_text()
EXAMPLE = (ROOT / "deploy" / "node.toml").read_text()


def faults(toml: str) -> list[str]:
    findings = Findings("")
    sound_part(tomllib.loads(toml), ConfigFile, findings)
    return [problem.text() for problem in findings.problems]


def keys(info: inspect.Type, path: Path = ()) -> Iterator[tuple[Path, inspect.Field]]:
    while isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.VarTupleType):
        yield from keys(info.item_type, path)
    elif isinstance(info, inspect.StructType):
        for field in info.fields:
            yield (*path, field.encode_name), field
            yield from keys(field.type, (*path, field.encode_name))


KEYS = [(path, field) for path, field in keys(inspect.type_info(ConfigFile)) if len(path) > 1]


def test_the_schema_forbids_unknown_keys_and_tells_what_keys_mean() -> None:
    schema = json_schema()
    tables = schema["$defs"]
    assert isinstance(tables, dict)
    assert all(
        table["additionalProperties"] is False for table in tables.values() if table.get("type") == "object"
    )
    assert "2020-12" in str(schema["$schema"])
    assert tables["ExecutorsTable"]["properties"]["port_base"]["maximum"] == 65535
    msgspec.json.decode(msgspec.json.encode(schema))


def test_an_empty_file_is_one() -> None:
    assert msgspec.convert({}, ConfigFile) == ConfigFile()
    assert faults("") == []


def test_the_example_fits() -> None:
    assert faults(EXAMPLE) == []


def test_the_example_fits_with_every_line_uncommented() -> None:
    """What is commented out must be right as well: somebody will take the sign away."""
    head, rest = EXAMPLE.split("\n\n", 1)
    assert head.startswith("#")
    text = re.sub(r"^#\s?(\s*(\[+[\w.]+\]+|\w+ = .*))$", r"\1", rest, flags=re.MULTILINE)
    assert "attempts_max = 2" in text.splitlines()[-40:] or "\nattempts_max" in text
    assert faults(text) == []


@pytest.mark.parametrize(("path", "field"), KEYS, ids=[key_text(path) for path, _ in KEYS])
def test_every_key_says_what_it_means(path: Path, field: inspect.Field) -> None:
    info = field.type
    description = ""
    while isinstance(info, inspect.Metadata):
        description = description or (info.extra_json_schema or {}).get("description", "")
        info = info.type
    assert description or isinstance(info, inspect.StructType | inspect.VarTupleType), key_text(path)


def test_the_page_has_a_row_for_every_key_with_its_default_and_variable() -> None:
    sections = dict(re.findall(r"^### `\[+([\w.]+)\]+`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
    variables = {variable.key: name for name, variable in VARIABLES.items() if variable.use is Use.SETTING}
    missing = []
    for path, field in KEYS:
        table, key = key_text(path[:-1]), path[-1]
        if key in {"casola", "engine"} or table == "executor.engine":
            continue
        row = re.search(rf"^\| `{key}` \| (.*?) \| (.*?) \| .+\|$", sections[table], re.MULTILINE)
        variable = variables.get(key_text(path))
        if row is None or row[1] != shown_default(field) or row[2] != (f"`{variable}`" if variable else "–"):
            missing.append(key_text(path))
    assert missing == []


def test_the_page_has_no_row_for_a_key_that_does_not_exist() -> None:
    known = {str(path[-1]) for path, _ in KEYS}
    rows = PAGE.split("## All keys")[1].split("## Accepted without effect")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", rows, re.MULTILINE)) - known == set()


def test_the_page_names_every_variable() -> None:
    assert [name for name in VARIABLES if f"`{name}`" not in PAGE and name != "GPUWARD_CONFIG"] == []
    assert "GPUWARD_CONFIG" in PAGE


def test_keys_without_use_and_keys_with_advice_are_what_they_say() -> None:
    assert set(CasolaTable.__struct_fields__) >= CASOLA_NOT_USED_YET
    assert [path for path in ADVICE if path in {p for p, _ in KEYS}] == []


def shown_default(field: inspect.Field) -> str:
    match field.default:
        case None:
            return "–"
        case bool():
            return f"`{str(field.default).lower()}`"
        case str():
            return f'`"{field.default}"`'
        case ():
            return "`[]`"
        case float():
            return f"`{field.default:g}`"
        case int():
            return f"`{field.default}`"
        case _:
            return "`{}`"
