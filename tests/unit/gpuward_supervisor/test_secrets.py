"""Secrets do not show themselves, whatever is done with them."""

from __future__ import annotations

import pickle
from pathlib import Path

import msgspec
import pytest

from gpuward_supervisor.secrets import (
    Secret,
    checked_secret,
    is_secret_name,
    read_secret_file,
    without_credentials,
    without_secret_options,
)


class Holder(msgspec.Struct, frozen=True):
    token: Secret


def test_no_way_of_printing_shows_the_value() -> None:
    secret = Secret("hunter2hunter2")
    holder = Holder(secret)
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r}", f"{[secret]}", repr(holder)]
    assert [text for text in shown if "hunter2" in text] == []


def test_serializing_a_secret_fails_rather_than_leaks() -> None:
    with pytest.raises(TypeError):
        msgspec.json.encode(Holder(Secret("hunter2")))
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret("hunter2"))
    with pytest.raises(TypeError):
        "".join([Secret("hunter2")])  # type: ignore[list-item]


def test_reveal_gives_the_value() -> None:
    assert Secret("hunter2").reveal() == "hunter2"


def test_secrets_compare_by_value_and_an_empty_one_is_false() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert not Secret("")
    assert Secret("a")


@pytest.mark.parametrize(
    "name",
    [
        "CASOLA_API_TOKEN",
        "HF_TOKEN",
        "token",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "openai_api_key",
        "APIKEY",
        "BASIC_AUTH",
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["token_file", "CASOLA_API_TOKEN_FILE", "max_num_batched_tokens", "tokenizer", "PATH", "author", "key"],
)
def test_names_that_only_look_alike_are_let_through(name: str) -> None:
    assert not is_secret_name(name)


def test_urls_lose_user_password_query_and_fragment() -> None:
    text = 'GET "https://user:pw@store.example/a/b?X-Amz-Signature=abc#frag" failed'
    shown = without_credentials(text)
    assert "pw" not in shown
    assert "abc" not in shown
    assert "store.example/a/b" in shown


def test_options_with_secret_names_lose_their_values() -> None:
    line = "serve m --api-key sk-123 --hf-token=hf_9 --max-num-batched-tokens 8192 --port 8000 --token"
    assert without_secret_options(line) == (
        "serve m --api-key *** --hf-token=*** --max-num-batched-tokens 8192 --port 8000 --token"
    )


def test_options_in_a_list_lose_their_values_too() -> None:
    assert without_secret_options('["--api-key", "sk-123", "--port"]') == '["--api-key", "***", "--port"]'


def test_a_token_file_is_read_without_the_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("  abc123\n")
    assert read_secret_file(tmp_path / "token").reveal() == "abc123"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b" \n ", "empty"),
        (b"one\ntwo\n", "one line"),
        (b"caf\xc3\xa9", "ASCII"),
        (b"\xff\xfe", "ASCII"),
        (b"a" * 70_000, "larger than"),
    ],
)
def test_an_unusable_token_file_is_refused_without_showing_it(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ValueError, match=why) as refused:
        read_secret_file(tmp_path / "token")
    assert "two" not in str(refused.value)


def test_a_secret_that_could_end_a_header_is_refused() -> None:
    with pytest.raises(ValueError, match="one line"):
        checked_secret("abc\r\nX-Other: 1")
