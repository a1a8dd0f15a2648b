"""What a person reads of a problem."""

from __future__ import annotations

import pytest

from gpuward_supervisor.config.problems import Problem, key_text, nearest, one_line, shown
from gpuward_supervisor.secrets import Secret


def test_a_problem_names_place_key_value_expectation_and_next_step() -> None:
    problem = Problem("node.toml", "executors.slots", '"8"', "expected a whole number", "write 8")
    assert problem.text() == 'node.toml: executors.slots = "8": expected a whole number; write 8'


def test_what_is_not_known_is_left_out() -> None:
    assert Problem("", "source.casola.url", "", "is missing").text() == "source.casola.url: is missing"
    assert Problem("node.toml", "", "", "is not TOML").text() == "node.toml: is not TOML"


def test_keys_are_written_as_in_toml() -> None:
    assert key_text(("executor", 1, "engine", "kind")) == "executor[1].engine.kind"
    assert key_text(("a", "odd key\n")) == "a.'odd key\\n'"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("a\n\x1b", '"a\\x0a\\x1b"'),
        ([1, "b"], '[1, "b"]'),
        ({"a": 1, "token": "t"}, "{a = 1, token = ***}"),
        (1.5, "1.5"),
        (61.0, "61"),
        (Secret("hunter2"), "***"),
        ("wss://me:pw@host/x?sig=1", '"wss://***@host/x'),
    ],
)
def test_values_are_shown_as_in_toml_on_one_line_without_secrets(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_value_under_a_secret_key_is_masked() -> None:
    assert shown("abc", "api_token") == "***"


def test_a_long_value_is_cut() -> None:
    assert len(shown("a" * 500)) == 160
    assert shown("a" * 500).endswith("…")


def test_the_nearest_word_is_found_and_a_far_one_is_not() -> None:
    assert nearest("MODLE", ["model", "host"]) == "model"
    assert nearest("zzz", ["model", "host"]) is None


def test_one_line_shows_control_characters() -> None:
    assert one_line("a\tb\x9b") == "a\\x09b\\x9b"
