"""What a development queue can be told: one frozen struct, checked when it is made."""

from __future__ import annotations

import msgspec

from gpuward_devqueue.errors import ConfigurationError

MIB = 1024 * 1024
#: A payload whose JSON is longer than this is offered by URL when URLs are on.
PAYLOAD_URL_THRESHOLD_BYTES = 262_144


class DevQueueConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All options of a queue; the defaults behave like a plain queue on loopback.

    Raises:
        ConfigurationError: a value is out of its range; the text names field, value and range.
    """

    #: Address to bind. Loopback unless somebody decides otherwise: the REST side has no authentication.
    host: str = "127.0.0.1"
    #: TCP port, 0 = any free one (read it back from ``DevQueue.port``).
    port: int = 0
    #: How long a persisted job stays with a worker that does not renew, seconds, > 0.
    lease_s: float = 300.0
    #: How long a transient caller waits for its answer, seconds, > 0.
    timeout_s: float = 120.0
    #: Bearer token workers must present on the upgrade; None = anybody may connect.
    token: str | None = None
    #: Whether jobs carry ``payload_url`` and ``result_upload_url``.
    presign: bool = False
    #: A payload strictly longer than this goes by URL when ``presign`` is on, bytes, >= 0.
    payload_url_threshold_bytes: int = PAYLOAD_URL_THRESHOLD_BYTES
    #: How long a presigned URL is good for, seconds, > 0.
    url_ttl_s: float = 900.0
    #: Base of presigned URLs; None = the address the worker itself connected to.
    public_url: str | None = None
    #: Largest WebSocket message taken from a worker, bytes; a longer one closes with 1009.
    max_frame_bytes: int = 64 * MIB
    #: Largest HTTP body taken (callers' requests, uploaded results), bytes.
    max_body_bytes: int = 256 * MIB
    #: Interval of the queue's own WebSocket pings, seconds, 0 = none.
    ping_interval_s: float = 20.0
    #: Whether a transient call waits for a free slot instead of getting 503 at once.
    queue_transient: bool = False
    #: Whether fence 0 in an answer to a transient job counts as its own: the reference worker sends that.
    accept_fence_zero: bool = False
    #: How many ended jobs are remembered, and how many bytes of them; the oldest go first.
    jobs_kept_max: int = 100_000
    kept_max_bytes: int = 512 * MIB
    #: How many frames of workers are remembered for inspection, 0 = none.
    frames_kept_max: int = 0

    def __post_init__(self) -> None:
        for name in ("lease_s", "timeout_s", "url_ttl_s"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigurationError(f"{name} = {value}: expected a number of seconds above 0")
        for name in ("payload_url_threshold_bytes", "ping_interval_s", "jobs_kept_max", "kept_max_bytes"):
            value = getattr(self, name)
            if value < 0:
                raise ConfigurationError(f"{name} = {value}: expected 0 or more")
        for name in ("max_frame_bytes", "max_body_bytes"):
            value = getattr(self, name)
            if value < 1024:
                raise ConfigurationError(f"{name} = {value}: expected at least 1024 bytes")
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port = {self.port}: expected 0 (any free port) to 65535")
        if self.token is not None and not self.token.strip():
            raise ConfigurationError("token is empty: leave it out to let every worker in")
