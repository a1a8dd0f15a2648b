from __future__ import annotations

import pytest

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.errors import ConfigurationError


def test_defaults_are_those_of_the_protocol() -> None:
    config = DevQueueConfig()
    assert (config.host, config.lease_s, config.timeout_s) == ("127.0.0.1", 300.0, 120.0)
    assert config.payload_url_threshold_bytes == 262_144
    assert config.max_frame_bytes == 64 * 1024 * 1024


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lease_s", 0),
        ("timeout_s", -1),
        ("url_ttl_s", 0),
        ("payload_url_threshold_bytes", -1),
        ("ping_interval_s", -0.5),
        ("max_frame_bytes", 10),
        ("max_body_bytes", 0),
        ("port", 70_000),
        ("token", " "),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=field):
        DevQueueConfig(**{field: value})  # type: ignore[arg-type]


def test_a_lease_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="lease_s"):
        DevQueueConfig(lease_s=float("nan"))
