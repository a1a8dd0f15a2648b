from __future__ import annotations

import re

import pytest

from gpuward_executors.backends.vllm.family import (
    check_answer,
    encode_payload,
    now_text,
    parse_payload,
    present,
)
from gpuward_executors.errors import EngineFailed, JobRefused


def test_values_keep_every_digit() -> None:
    payload = b'{"a":1e400,"b":123456789012345678901234567890,"c":0.10}'
    assert encode_payload(parse_payload(payload)) == payload


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"[1]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"a":"\xff"}', "not valid UTF-8: byte 6"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_payload_that_is_no_object_is_the_jobs_fault(payload: bytes, text: str) -> None:
    with pytest.raises(JobRefused, match=text):
        parse_payload(payload)


def test_null_is_not_present() -> None:
    payload = parse_payload(b'{"a":null,"b":0}')
    assert [present(payload, name) for name in "abc"] == [False, True, False]


@pytest.mark.parametrize("answer", [b'{"error":{"message":"dead"}}', b'{"id":"\xff"}'])
def test_an_answer_that_is_an_error_or_no_text_is_the_engines_fault(answer: bytes) -> None:
    with pytest.raises(EngineFailed, match="the engine answered with"):
        check_answer(answer)


def test_the_time_is_local_without_zone_with_microseconds() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", now_text())
