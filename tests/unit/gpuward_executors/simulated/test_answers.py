"""Answers follow from the input alone."""

from __future__ import annotations

import pytest

from gpuward_executors.simulated.answers import Answer, echo, embed, floats, token_count


def test_an_answer_names_its_question() -> None:
    assert echo("hello") == "sim:hello"
    assert echo("x" * 500) == "sim:" + "x" * 200


@pytest.mark.parametrize("text", ["sim:a b", "sim:", "sim:  two  spaces\nand a line ", "sim:ünï 漢字"])
def test_a_whole_answer_is_the_echo_itself(text: str) -> None:
    answer = Answer(text, tokens_max=100)
    assert answer.text(0, len(answer.tokens)) == text
    assert answer.finish_reason == "stop"


def test_a_limit_cuts_the_answer_and_says_so() -> None:
    answer = Answer("sim:a b c", tokens_max=2)
    assert answer.text(0, 2) == "sim:a b "
    assert answer.finish_reason == "length"


def test_a_limit_of_exactly_the_echo_is_no_cut() -> None:
    assert Answer("sim:a b c", tokens_max=3).finish_reason == "stop"


def test_a_minimum_repeats_the_echo() -> None:
    answer = Answer("sim:a b", tokens_max=100, tokens_min=5)
    assert answer.text(0, 5) == "sim:a b sim:a b sim:a "
    assert answer.finish_reason == "stop"


def test_the_limit_wins_over_the_minimum() -> None:
    answer = Answer("sim:a b", tokens_max=3, tokens_min=10)
    assert len(answer.tokens) == 3
    assert answer.finish_reason == "length"


def test_pieces_join_to_the_whole() -> None:
    answer = Answer("sim:a b c", tokens_max=10)
    assert answer.text(0, 1) + answer.text(1, 3) == "sim:a b c"


def test_a_prompt_has_at_least_one_token() -> None:
    assert token_count("") == 1
    assert token_count("x" * 400) == 101


@pytest.mark.parametrize("dimensions", [1, 3, 64])
def test_a_vector_is_repeatable_and_of_length_one(dimensions: int) -> None:
    vector = floats(embed("a text", dimensions))
    assert vector == floats(embed("a text", dimensions))
    assert len(vector) == dimensions
    assert sum(number * number for number in vector) == pytest.approx(1.0, abs=1e-6)


def test_other_texts_have_other_vectors() -> None:
    assert embed("a", 8) != embed("b", 8)


def test_a_lone_surrogate_can_be_embedded() -> None:
    assert len(embed("\ud800", 2)) == 8
