"""Signed, expiring URLs for payloads and results, and the results that came in through them.

Works as an object store behind presigned URLs does: who has the URL may use it until it expires, for exactly
one job and fence. An upload must carry the content type the signature stands for.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from enum import StrEnum
from urllib.parse import urlencode

import msgspec

from gpuward_devqueue.records import JobId

UPLOAD_CONTENT_TYPE = "application/json"


class Use(StrEnum):
    """What a URL is for; part of what is signed."""

    PAYLOAD = "GET"
    RESULT = "PUT"


_PATHS = {Use.PAYLOAD: "/payloads", Use.RESULT: "/results"}


class SignedRequest(msgspec.Struct, frozen=True):
    """What a request to a presigned URL claims."""

    use: Use
    job_id: JobId
    fence: int
    #: Wall clock, whole seconds since 1970.
    expires_s: int
    token: str


class Signer:
    """Makes and checks the URLs of one queue.

    Args:
        ttl_s: how long a URL is good for.
        secret: key of the signatures; random when left out.
    """

    def __init__(self, ttl_s: float, secret: bytes | None = None) -> None:
        self._ttl_s = ttl_s
        self._secret = secret or secrets.token_bytes(32)

    def url(self, base_url: str, use: Use, job_id: JobId, fence: int, wall_s: float) -> str:
        """Return a URL below ``base_url`` (no trailing slash) that is good from now for ``ttl_s``."""
        # Rounded up, so that a short life never becomes none.
        expires_s = int(wall_s + self._ttl_s) + 1
        query = urlencode(
            {"fence": fence, "expires": expires_s, "token": self._sign(use, job_id, fence, expires_s)}
        )
        return f"{base_url}{_PATHS[use]}/{job_id}?{query}"

    def objection(self, request: SignedRequest, wall_s: float) -> str | None:
        """Return why the request may not pass, or None when it may."""
        expected = self._sign(request.use, request.job_id, request.fence, request.expires_s)
        if not hmac.compare_digest(expected.encode(), request.token.encode()):
            return (
                "SignatureDoesNotMatch: the URL was not signed by this queue for this job, fence and method"
            )
        if wall_s >= request.expires_s:
            return f"AccessDenied: the URL expired {wall_s - request.expires_s:.0f} s ago"
        return None

    def _sign(self, use: Use, job_id: JobId, fence: int, expires_s: int) -> str:
        text = f"{use.value}\n{job_id}\n{fence}\n{expires_s}"
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


class Uploads:
    """Results that were uploaded and not yet referred to; at most one per job and fence."""

    def __init__(self) -> None:
        self._bodies: dict[JobId, tuple[int, bytes]] = {}

    def put(self, job_id: JobId, fence: int, body: bytes) -> None:
        """Keep an upload; a later fence replaces an earlier one, never the other way round."""
        held = self._bodies.get(job_id)
        if held is None or held[0] <= fence:
            self._bodies[job_id] = (fence, body)

    def get(self, job_id: JobId, fence: int) -> bytes | None:
        """Return the upload made under exactly this fence, or None."""
        held = self._bodies.get(job_id)
        return held[1] if held is not None and held[0] == fence else None

    def drop(self, job_id: JobId) -> None:
        """Forget what was uploaded for a job."""
        self._bodies.pop(job_id, None)
