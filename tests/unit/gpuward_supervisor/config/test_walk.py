"""Every fault of a file is found in one go, and the sound rest is kept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from gpuward_supervisor.config.findings import Findings
from gpuward_supervisor.config.schema import ConfigFile
from gpuward_supervisor.config.walk import sound_part, type_at


def walk(tree: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    findings = Findings("")
    return sound_part(tree, ConfigFile, findings), [problem.text() for problem in findings.problems]


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"nod": {}}, "nod = {}: there is no such key; did you mean `node`?"),
        (
            {"executors": {"engine": {"modle": "m"}}},
            'executors.engine.modle = "m": there is no such key; did you mean `model`?',
        ),
        ({"node": {"zzz": 1}}, "node.zzz = 1: there is no such key; known here: name, "),
        (
            {"executors": {"attempts_max": 1}},
            "executors.attempts_max = 1: there is no such key; it belongs into [dispatch]",
        ),
        (
            {"source": {"casola": {"token": "hunter2"}}},
            "source.casola.token = ***: there is no such key; write the token into a file that token_file",
        ),
        ({"node": 3}, "node = 3: a table: write [node] above its keys"),
        ({"executor": {"slots": 1}}, "executor = {slots = 1}: tables: write [[executor]] above each"),
        ({"executor": [3]}, "executor[0] = 3: a table: write [[executor]] above its keys"),
        (
            {"executors": {"slots": "8"}},
            'executors.slots = "8": expected a whole number from 1 to 65536; write 8 without quotes',
        ),
        ({"executors": {"slots": True}}, "executors.slots = true: expected a whole number from 1 to 65536"),
        ({"executors": {"slots": 1.5}}, "executors.slots = 1.5: expected a whole number from 1 to 65536"),
        ({"executors": {"slots": 0}}, "executors.slots = 0: expected a whole number from 1 to 65536"),
        (
            {"node": {"source_close_s": 0}},
            "node.source_close_s = 0: expected a number of seconds above 0 and at most 31536000",
        ),
        (
            {"node": {"source_close_s": float("nan")}},
            "node.source_close_s = nan: expected a number of seconds above 0 and at most 31536000",
        ),
        ({"limits": {"outbox_max": 0}}, "limits.outbox_max = 0: expected a whole number of 1 or more"),
        (
            {"limits": {"inbound_max_bytes": "x"}},
            'limits.inbound_max_bytes = "x": expected a whole number of bytes of 1024 or more',
        ),
        (
            {"node": {"job_notes": "true"}},
            'node.job_notes = "true": expected true or false; write true without quotes',
        ),
        (
            {"node": {"log_level": "warn"}},
            'node.log_level = "warn": expected one of "debug", "info", "warning", "error"; did you mean',
        ),
        (
            {"node": {"name": "a b"}},
            'node.name = "a b": expected a name of at most 63 letters, digits, `_`, `.` and `-`',
        ),
        ({"node": {"state_dir": ""}}, 'node.state_dir = "": expected a text that is not empty'),
        (
            {"executors": {"engine": {"health_path": "health"}}},
            'executors.engine.health_path = "health": expected a path that begins with `/`',
        ),
        ({"executors": {"environment": {"A": 1}}}, "executors.environment.A = 1: expected a text"),
        (
            {"executors": {"environment": "A=1"}},
            'executors.environment = "A=1": expected a table of names and texts',
        ),
        (
            {"executors": {"gpus": "all"}},
            'executors.gpus = "all": expected "each", "none", a number of GPUs, a list of indices',
        ),
        (
            {"executors": {"gpus": [0, 1.5]}},
            "executors.gpus[1] = 1.5: expected a whole number, or a text, or a list of",
        ),
        (
            {"executors": {"gpus": [[0, True]]}},
            "executors.gpus[0][1] = true: expected a whole number, or a text",
        ),
        (
            {"executors": {"engine": {"extra_args": ["-tp", 2]}}},
            "executors.engine.extra_args[1] = 2: expected a text",
        ),
        (
            {"executors": {"engine": {"extra_args": 2}}},
            "executors.engine.extra_args = 2: expected a text, or a list of: a text",
        ),
    ],
)
def test_every_kind_of_fault_is_told_in_words(tree: dict[str, Any], problem: str) -> None:
    _, problems = walk(tree)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_all_faults_are_found_and_the_sound_rest_is_kept() -> None:
    sound, problems = walk(
        {
            "node": {"nme": "x", "shutdown_grace_s": 7, "log_level": 1},
            "executor": [{"slots": 0, "name": "a"}, {"slots": 2, "gpus": [0, "GPU-1"]}],
            "limit": {},
        }
    )
    assert len(problems) == 4
    assert sound == {
        "node": {"shutdown_grace_s": 7},
        "executor": [{"name": "a"}, {"slots": 2, "gpus": [0, "GPU-1"]}],
    }


def test_the_type_of_a_key_is_found_less_none() -> None:
    assert isinstance(type_at(ConfigFile, ("source", "casola", "capacity")), inspect.IntType)
    assert isinstance(type_at(ConfigFile, ("node", "log_level")), inspect.EnumType)
    with pytest.raises(KeyError, match="nothing"):
        type_at(ConfigFile, ("node", "nothing"))


def _keys(info: inspect.Type) -> set[str]:
    if isinstance(info, inspect.StructType):
        return {field.name for field in info.fields} | {k for field in info.fields for k in _keys(field.type)}
    return _keys(info.type) if isinstance(info, inspect.Metadata) else set()


_values = st.recursive(
    st.booleans()
    | st.integers(-5, 70_000)
    | st.floats()
    | st.sampled_from(["each", "none", "vllm", "", "8", "a b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*sorted(_keys(inspect.type_info(ConfigFile))), "odd"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([*ConfigFile.__struct_fields__, "odd"]), _values, max_size=4))
def test_what_is_kept_always_converts_and_what_is_right_is_always_kept(tree: dict[str, Any]) -> None:
    sound, problems = walk(tree)
    msgspec.convert(sound, ConfigFile)
    try:
        msgspec.convert(tree, ConfigFile)
    except msgspec.ValidationError:
        assert problems
    else:
        # msgspec takes nan and inf where we do not, and nothing else.
        assert sound == tree or problems
