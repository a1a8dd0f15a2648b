"""The object store behind presigned URLs: payloads go out, results come in."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from gpuward_devqueue.broker import Broker
from gpuward_devqueue.errors import UnknownJob
from gpuward_devqueue.ledger import Note
from gpuward_devqueue.misbehaviour import Fault
from gpuward_devqueue.presign import UPLOAD_CONTENT_TYPE, SignedRequest, Use
from gpuward_devqueue.records import NO_CONNECTION, Job, JobId

#: A piece of the body that never ends, and the pause between two of them.
ENDLESS_PIECE = b" " * 65536
ENDLESS_PAUSE_S = 0.001
#: How often a slow download looks whether its reader is still there.
DAWDLE_STEP_S = 0.05


class TransferRoutes:
    """Serves ``/payloads`` and ``/results``."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to add to the application."""
        return [
            web.get("/payloads/{job_id}", self.download),
            web.put("/results/{job_id}", self.upload),
        ]

    async def download(self, request: web.Request) -> web.StreamResponse:
        """Serve a payload to whoever has its URL."""
        broker = self._broker
        job, signed = self._admit(Use.PAYLOAD, request)
        if strike := broker.strikes(Fault.REFUSE_PAYLOAD, NO_CONNECTION):
            return web.Response(status=strike.status, text="scripted: payload refused\n")
        if broker.strikes(Fault.ENDLESS_PAYLOAD, NO_CONNECTION):
            return await _endless(request)
        if broker.strikes(Fault.BROKEN_PAYLOAD, NO_CONNECTION):
            return web.Response(body=job.payload[:-1] + b"<", content_type="application/json")
        if strike := broker.strikes(Fault.SLOW_PAYLOAD, NO_CONNECTION):
            await _dawdle(request, strike.delay_s)
        broker.note_job(job, Note.PAYLOAD_FETCHED, signed.fence)
        return web.Response(body=job.payload, content_type="application/json")

    async def upload(self, request: web.Request) -> web.StreamResponse:
        """Take a result from whoever has its URL."""
        broker = self._broker
        job, signed = self._admit(Use.RESULT, request)
        if strike := broker.strikes(Fault.REFUSE_PUT, NO_CONNECTION):
            broker.note_job(job, Note.UPLOAD_REFUSED, signed.fence, f"scripted {strike.status}")
            return web.Response(status=strike.status, text="scripted: upload refused\n")
        content_type = request.headers.get("Content-Type", "")
        if content_type != UPLOAD_CONTENT_TYPE:
            why = (
                f"SignatureDoesNotMatch: Content-Type is {content_type!r}, signed was {UPLOAD_CONTENT_TYPE!r}"
            )
            broker.note_job(job, Note.UPLOAD_REFUSED, signed.fence, why)
            return web.Response(status=403, text=why + "\n")
        body = await request.read()
        # Only now: while the body came in, the job may have ended or been offered again.
        if not job.terminal:
            broker.uploads.put(job.id, signed.fence, body)
        broker.note_job(job, Note.UPLOADED, signed.fence, f"{len(body)} bytes")
        return web.Response(status=200)

    def _admit(self, use: Use, request: web.Request) -> tuple[Job, SignedRequest]:
        broker = self._broker
        job_id = JobId(request.match_info["job_id"])
        query = request.query
        try:
            signed = SignedRequest(use, job_id, int(query["fence"]), int(query["expires"]), query["token"])
        except (KeyError, ValueError):
            raise web.HTTPForbidden(text="AccessDenied: fence, expires or token is missing\n") from None
        why = broker.signer.objection(signed, time.time())
        try:
            job = broker.job(job_id)
        except UnknownJob as unknown:
            # Only somebody with a good signature may learn that a job is gone.
            if why is not None:
                raise web.HTTPForbidden(text=why + "\n") from None
            raise web.HTTPNotFound(text=f"NoSuchKey: {unknown}\n") from None
        if why is not None:
            if use is Use.RESULT:
                broker.note_job(job, Note.UPLOAD_REFUSED, signed.fence, why)
            raise web.HTTPForbidden(text=why + "\n")
        return job, signed


async def _dawdle(request: web.Request, delay_s: float) -> None:
    """Let time pass, but not for a reader that has left: that would hold up the queue's stop."""
    until_s = time.monotonic() + delay_s
    while (  # noqa: ASYNC110 - nothing tells that a reader has left, one has to look
        request.transport is not None and (left_s := until_s - time.monotonic()) > 0
    ):
        await asyncio.sleep(min(left_s, DAWDLE_STEP_S))


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    try:
        await response.write(b"[")
        while True:
            await response.write(ENDLESS_PIECE)
            await asyncio.sleep(ENDLESS_PAUSE_S)
    except ConnectionError:
        return response  # the reader has had enough, as it should
