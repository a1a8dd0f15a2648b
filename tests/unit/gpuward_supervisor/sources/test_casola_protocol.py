from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuward_supervisor.core.events import Mode
from gpuward_supervisor.sources import casola_protocol as protocol
from gpuward_supervisor.sources.casola_protocol import Ignored, Job, QueueError, Revoked, Unusable, decode

#: A busy machine is no reason to fail.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def job(text: bytes) -> Job:
    decoded = decode(text)
    assert isinstance(decoded, Job)
    return decoded


def ignored(text: bytes) -> str:
    decoded = decode(text)
    assert isinstance(decoded, Ignored)
    return decoded.reason


# ---------------------------------------------------------------- inbound


def test_a_whole_job() -> None:
    decoded = job(
        b'{"type":"job","job_id":"a","mode":"persisted","config_id":"c","payload":{"task":"t", "x": 1.0},'
        b'"fence_token":7,"payload_url":"http://p","result_upload_url":"http://r"}'
    )
    assert (decoded.job_id, decoded.config_id, decoded.fence_token) == ("a", "c", 7)
    assert (decoded.payload_url, decoded.result_upload_url) == ("http://p", "http://r")
    assert protocol.mode_of(decoded) is Mode.PERSISTED


def test_the_payload_stays_as_it_came() -> None:
    decoded = job(b'{"type":"job","job_id":"a","payload": {"task" : "t",  "x":1.0e0 } }')
    assert bytes(decoded.payload) == b'{"task" : "t",  "x":1.0e0 }'


def test_missing_fields_are_read_as_the_queues_own_worker_reads_them() -> None:
    decoded = job(b'{"type":"job","job_id":"a"}')
    assert protocol.mode_of(decoded) is Mode.TRANSIENT
    assert bytes(decoded.payload) == b"{}"
    assert decoded.fence_token == 0
    assert not decoded.config_id
    assert not decoded.payload_url


def test_optional_fields_may_be_null() -> None:
    decoded = job(b'{"type":"job","job_id":"a","payload_url":null,"result_upload_url":null,"mode":null}')
    assert (decoded.payload_url, decoded.result_upload_url, decoded.mode) == (None, None, None)


def test_unknown_fields_and_another_order_do_no_harm() -> None:
    assert job(b'{"new":[1,{}],"fence_token":2,"job_id":"a","type":"job"}').fence_token == 2


def test_an_unknown_mode_is_transient() -> None:
    assert protocol.mode_of(job(b'{"type":"job","job_id":"a","mode":"later"}')) is Mode.TRANSIENT


@pytest.mark.parametrize("member", [b"", b'"job_id":"",', b'"job_id":null,'])
def test_a_job_without_an_id_is_rejected(member: bytes) -> None:
    assert "job_id" in ignored(b'{"type":"job",%b"fence_token":1}' % member)


@pytest.mark.parametrize("fence", [b'"1"', b"1.5", b"null", b"true", b"9223372036854775808"])
def test_a_fence_that_is_no_integer_is_rejected(fence: bytes) -> None:
    assert "fence_token" in ignored(b'{"type":"job","job_id":"a","fence_token":%b}' % fence)


def test_a_revocation() -> None:
    text = b'{"type":"job_revoked","job_id":"a","reason":"cancelled"}'
    assert decode(text) == Revoked(job_id="a", reason="cancelled")
    assert decode(b'{"type":"job_revoked","job_id":"a"}') == Revoked(job_id="a", reason=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"type":"error","message":"no"}', "no"),
        (b'{"type":"error"}', ""),
        (b'{"type":"error","message":[1]}', "[1]"),
    ],
)
def test_an_error_notice_of_any_shape(text: bytes, message: str) -> None:
    decoded = decode(text)
    assert isinstance(decoded, QueueError)
    assert protocol.error_text(decoded) == message


def test_the_echo_of_a_result_reference_is_known() -> None:
    assert isinstance(decode(b'{"type":"job_result_ref","job_id":"a","x":1}'), protocol.ResultRefEcho)


JUNK = [
    b"",
    b"not json",
    b"[1]",
    b"[]",
    b"5",
    b"null",
    b'"job"',
    b"{}",
    b'{"type":null}',
    b'{"type":["job"]}',
    b'{"type":"job"',
    b'{"type":"job","job_id":5}',
    b'{"type":"job","job_id":"\xff"}',
    b'{"type":"job_revoked"}',
    b'{"type":"job","job_id":"a"} trailing',
    b"[" * 100_000,
    b"\x00\xff\xfe",
]


@pytest.mark.parametrize("text", JUNK)
def test_junk_is_ignored_with_a_reason(text: bytes) -> None:
    assert ignored(text)


def test_an_unknown_type_is_named() -> None:
    assert "'job_stream'" in ignored(b'{"type":"job_stream","x":1}')


@given(st.binary(max_size=300))
@UNTIMED
def test_no_bytes_make_it_raise(text: bytes) -> None:
    decode(text)
    protocol.decode_ends(text, text, "why")
    protocol.peek_task(text)


#: Everything that has a meaning in JSON, and a little beside it; a small alphabet finds more, sooner.
TEXT = st.text('ab",:{}[]\\ 1é\n\x00\U0001f600', max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**70) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["type", "job_id", "payload", "fence_token", "mode", "x"]), JSON))
@UNTIMED
@pytest.mark.slow
def test_no_object_makes_it_raise(message: dict[str, object]) -> None:
    message = {"type": "job"} | message
    decode(json.dumps(message).encode())


def test_a_job_nested_too_deeply_is_known_well_enough_to_be_refused() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    decoded = decode(b'{"type":"job","job_id":"a","payload":%b,"fence_token":3}' % deep)
    assert isinstance(decoded, Unusable)
    assert (decoded.job.job_id, decoded.job.fence_token) == ("a", 3)


@pytest.mark.parametrize("fence_first", [True, False])
def test_a_job_with_half_an_emoji_is_known_well_enough_to_be_refused(fence_first: bool) -> None:
    """What JavaScript makes of a text that was cut inside an emoji; ignored, the job would lapse for ever."""
    payload = b'"payload":{"messages":[{"role":"user","content":"cut \\ud83d"}]}'
    members = (b'"fence_token":3', payload) if fence_first else (payload, b'"fence_token":3')
    decoded = decode(b'{"type":"job","job_id":"a","mode":"persisted",%b}' % b",".join(members))
    assert isinstance(decoded, Unusable)
    assert (decoded.job.job_id, decoded.job.fence_token, decoded.job.mode) == ("a", 3, "persisted")
    assert "not readable as JSON" in decoded.reason


@pytest.mark.parametrize("name", ["job_id", "config_id", "task"])
def test_a_name_too_long_for_an_assignment_is_a_fault(name: str) -> None:
    names = {"job_id": "a", "config_id": "c", "task": "t"}
    limit = protocol.NAME_MAX_CHARS

    def fault_of(length: int) -> str:
        given = names | {name: "x" * length}
        return protocol.names_fault(Job(job_id=given["job_id"], config_id=given["config_id"]), given["task"])

    assert not fault_of(limit)
    assert f"has {limit + 1} characters" in fault_of(limit + 1)


# ---------------------------------------------------------------- a message known by its ends


def ends(text: bytes, keep: int = 60) -> Job | None:
    found = protocol.decode_ends(text[:keep], text[-keep:], "why")
    return found.job if isinstance(found, Unusable) else None


def test_a_job_is_known_by_what_stands_around_its_payload() -> None:
    body = json.dumps({"task": "t", "x": "y" * 500})
    text = f'{{"type":"job","job_id":"a","mode":"persisted","payload":{body},"fence_token":12}}'.encode()
    found = ends(text)
    assert found is not None
    assert (found.job_id, found.fence_token, found.mode) == ("a", 12, "persisted")


def test_white_space_and_any_order_do_no_harm() -> None:
    body = json.dumps(["y" * 500])
    text = f' {{ "payload" : {body} , "fence_token" : 12 , "job_id" : "a\\"b" , "type" : "job" }} '.encode()
    found = ends(text)
    assert found is not None
    assert (found.job_id, found.fence_token) == ('a"b', 12)


def test_a_payload_cannot_pretend_to_be_another_job() -> None:
    body = json.dumps(
        {
            "job_id": "evil",
            "fence_token": 99,
            "x": "y" * 500,
            "z": '"fence_token":98,',
            "q": {"fence_token": 97},
        }
    )
    found = ends(f'{{"type":"job","job_id":"a","fence_token":1,"payload":{body}}}'.encode())
    assert found is not None
    assert (found.job_id, found.fence_token) == ("a", 1)


def test_a_payload_that_is_a_long_string_cannot_either() -> None:
    body = json.dumps("y" * 500 + '","fence_token":99,"job_id":"evil')
    found = ends(f'{{"type":"job","job_id":"a","payload":{body},"fence_token":1}}'.encode())
    assert found is not None
    assert (found.job_id, found.fence_token) == ("a", 1)


@pytest.mark.parametrize(
    "text",
    [
        b'{"type":"other","job_id":"a","payload":[' + b"1," * 500 + b"1]}",
        b'{"type":"job","payload":"' + b"x" * 500,
    ],
)
def test_ends_that_name_no_job_are_ignored(text: bytes) -> None:
    assert ends(text) is None


def test_only_a_few_members_of_each_end_are_looked_at() -> None:
    """To look at all of a thousand took a quarter of a second, in which nothing else was done."""
    few, many = b',"x":1' * 20, b',"x":1' * 1200
    assert ends(b'{"type":"job","payload":[],"job_id":"a"' + few + b"}", keep=8192) is not None
    assert ends(b'{"type":"job","payload":[],"job_id":"a"' + many + b"}", keep=8192) is None
    assert ends(b'{"type":"job"' + few + b',"job_id":"a","payload":[]}', keep=8192) is not None
    assert ends(b'{"type":"job"' + many + b',"job_id":"a","payload":[]}', keep=8192) is None


@given(TEXT, st.integers(min_value=-(2**63), max_value=2**63 - 1), JSON)
@UNTIMED
@pytest.mark.slow
def test_ends_of_any_job_name_it(job_id: str, fence: int, payload: object) -> None:
    text = json.dumps(
        {"type": "job", "job_id": "x" + job_id, "payload": [payload], "fence_token": fence}
    ).encode()
    found = ends(text, keep=len(text))
    assert found is not None
    assert (found.job_id, found.fence_token) == ("x" + job_id, fence)


# ---------------------------------------------------------------- payloads


@pytest.mark.parametrize(
    ("payload", "task"),
    [
        (b'{"task":"openai/chat-completion"}', "openai/chat-completion"),
        (b'{"messages":[],"task":"t"}', "t"),
        (b"{}", ""),
        (b'{"task":5}', ""),
        (b'{"task":null}', ""),
        (b"[1]", ""),
        (b"null", ""),
        (b'"task"', ""),
        (b"{bad", ""),
    ],
)
def test_the_task_is_peeked_where_there_is_one(payload: bytes, task: str) -> None:
    assert protocol.peek_task(payload) == task


def test_json_is_told_from_what_is_not() -> None:
    assert not protocol.json_fault(b' {"a": [1, null]} ')
    assert protocol.json_fault(b'{"a": ')
    assert protocol.json_fault(b"")
    assert protocol.json_fault(b"<html>")


# ---------------------------------------------------------------- outbound


def test_the_exact_shapes() -> None:
    assert (
        protocol.register("w", "c", 4) == b'{"type":"register","worker_id":"w","config_id":"c","capacity":4}'
    )
    assert protocol.job_result("a", 7, b'{"x": 1}') == (
        b'{"type":"job_result","job_id":"a","result":{"x": 1},"fence_token":7}'
    )
    assert protocol.job_result_ref("a", 7) == b'{"type":"job_result_ref","job_id":"a","fence_token":7}'
    assert (
        protocol.job_error("a", 7, "no") == b'{"type":"job_error","job_id":"a","error":"no","fence_token":7}'
    )
    assert protocol.DRAIN == b'{"type":"drain"}'
    assert protocol.PAUSE == b'{"type":"pause"}'
    assert protocol.RESUME == b'{"type":"resume"}'


def test_progress_leaves_out_what_is_not_given() -> None:
    assert protocol.job_progress("a", 7) == b'{"type":"job_progress","job_id":"a","fence_token":7}'
    assert protocol.job_progress("a", 7, status_message="processing") == (
        b'{"type":"job_progress","job_id":"a","fence_token":7,"status_message":"processing"}'
    )
    assert json.loads(protocol.job_progress("a", 7, 0.0, "")) == {
        "type": "job_progress",
        "job_id": "a",
        "fence_token": 7,
        "progress": 0.0,
        "status_message": "",
    }


def test_the_ends_of_a_result_are_those_of_the_whole() -> None:
    before, after = protocol.result_ends('a"b', -1)
    assert before + b"[]" + after == protocol.job_result('a"b', -1, b"[]")


@given(TEXT, st.integers(), TEXT)
@UNTIMED
@pytest.mark.slow
def test_any_id_and_text_survive(job_id: str, fence: int, text: str) -> None:
    sent = msgspec.json.decode(protocol.job_error(job_id, fence, text), type=dict[str, object], strict=True)
    assert sent == {"type": "job_error", "job_id": job_id, "error": text, "fence_token": fence}


def test_half_a_surrogate_pair_does_not_stop_a_report() -> None:
    assert json.loads(protocol.job_error("a", 1, "bad \udcff name"))["error"] == "bad ? name"
