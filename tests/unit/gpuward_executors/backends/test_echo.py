from __future__ import annotations

from gpuward_executors.backends.base import Work
from gpuward_executors.backends.echo import EchoBackend


def test_the_result_is_the_payload_byte_for_byte() -> None:
    payload = b'{ "a" : [1.0, 1e9] }'
    assert EchoBackend().answer(Work("any", "cfg", payload)) is payload
