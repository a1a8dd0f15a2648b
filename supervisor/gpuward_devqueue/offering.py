"""How an offer becomes a job frame: what goes inline, what goes by URL, and padding for a scripted giant."""

from __future__ import annotations

import msgspec

from gpuward_devqueue import wire
from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.presign import Signer, Use
from gpuward_devqueue.records import Job, Mode, Offer


def job_frame(
    offer: Offer,
    job: Job,
    *,
    config: DevQueueConfig,
    signer: Signer,
    base_url: str,
    wall_s: float,
    pad_bytes: int = 0,
) -> bytes:
    """Return the text of the frame that makes this offer.

    Args:
        offer: which fence and config to name.
        job: what to run.
        config: whether URLs are used, and from which size on.
        signer: makes them.
        base_url: scheme and authority of the URLs, unless the configuration names one.
        wall_s: now, seconds since 1970.
        pad_bytes: by how much to inflate the payload that goes inline.
    """
    payload = job.payload
    payload_url: str | msgspec.UnsetType = msgspec.UNSET
    upload_url: str | msgspec.UnsetType = msgspec.UNSET
    if config.presign:
        base_url = (config.public_url or base_url).rstrip("/")
        if len(payload) > config.payload_url_threshold_bytes:
            payload_url = signer.url(base_url, Use.PAYLOAD, job.id, offer.fence, wall_s)
            payload = b"{}"
        if job.mode is Mode.PERSISTED:
            upload_url = signer.url(base_url, Use.RESULT, job.id, offer.fence, wall_s)
    frame = wire.JobFrame(
        job_id=job.id,
        mode=job.mode.value,
        config_id=offer.config_id,
        payload=msgspec.Raw(padded(payload, pad_bytes) if pad_bytes else payload),
        fence_token=offer.fence,
        payload_url=payload_url,
        result_upload_url=upload_url,
    )
    return wire.encode(frame)


def padded(payload: bytes, pad_bytes: int) -> bytes:
    """Return a JSON payload with ``pad_bytes`` more: as key ``_padding`` of an object, else as a string."""
    filler = b'"' + b"x" * pad_bytes + b'"'
    try:
        fields = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    except wire.DECODE_ERRORS:
        return filler
    fields["_padding"] = msgspec.Raw(filler)
    return msgspec.json.encode(fields)


def is_json(body: bytes) -> bool:
    """Whether a body is one JSON text in UTF-8."""
    try:
        body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except wire.DECODE_ERRORS:
        return False
    return True
