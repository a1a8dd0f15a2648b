from __future__ import annotations

import pytest

from gpuward_executors.backends.error_text import (
    TEXT_MAX_CHARS,
    engine_message,
    error_member,
    presentable,
)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"too long","code":400}}', "too long"),
        (b'{"object":"error","message":"old form"}', "old form"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"error":"just text"}', "just text"),
        (
            b'{"detail":[{"loc":["body"],"msg":"field required"}]}',
            '[{"loc":["body"],"msg":"field required"}]',
        ),
        (b"Internal Server Error", "Internal Server Error"),
        (b'{"other":1}', '{"other":1}'),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", "no message"),
    ],
)
def test_the_engines_own_message_is_found_in_every_known_form(body: bytes, message: str) -> None:
    assert engine_message(body) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"dead"}}', "dead"),
        (b'{"error":{"code":1}}', '{"code":1}'),
        (b'{"error":null,"id":"x"}', ""),
        (b'{"id":"x"}', ""),
        (b"[1]", ""),
    ],
)
def test_an_error_inside_a_success_is_found(body: bytes, message: str) -> None:
    assert error_member(body) == message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open /data/models/x/config.json here", "cannot open <path> here"),
        ("at ~/secret/file", "at <path>"),
        ("no token hf_abcdefghijklm given", "no token <secret> given"),
        ("key sk-abcdefghijkl!", "key <secret>!"),
        ("Bearer abcdefgh.ijkl", "Bearer <secret>"),
        ("see https://host/a/b and meta/llama/x", "see https://host/a/b and meta/llama/x"),
        ("3/4 and and/or /one", "3/4 and and/or /one"),
    ],
)
def test_paths_and_secrets_stay_inside(text: str, shown: str) -> None:
    assert presentable(text) == shown


def test_a_text_is_cut_to_its_bound() -> None:
    cut = presentable("x" * 9000)
    assert len(cut) == TEXT_MAX_CHARS
    assert cut.endswith("x …")
