"""What callers see: the OpenAI-compatible calls, persisted jobs, health, the ledger and the fault script.

Error bodies carry the text twice: as ``detail`` (the test server of the protocol) and as ``error.message``
(OpenAI's clients).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

import msgspec
from aiohttp import web
from msgspec import Raw

from gpuward_devqueue.broker import Broker
from gpuward_devqueue.errors import AlreadyTerminal, DevQueueError, NoWorker, UnknownJob
from gpuward_devqueue.misbehaviour import Fault, Misbehaviour, from_fields
from gpuward_devqueue.records import Job, JobId, Mode, Status, WorkerView, view_of_job, view_of_worker
from gpuward_devqueue.wire import DECODE_ERRORS

T = TypeVar("T")

LIST_LIMIT = 1000
LEDGER_LIMIT = 100


class _Message(msgspec.Struct):
    role: str
    content: Raw = Raw(b"null")


class _ChatBody(msgspec.Struct):
    """What a chat request must have; whatever else it has goes to the worker as it is."""

    model: str
    messages: list[_Message]


class _EmbeddingsBody(msgspec.Struct):
    """What an embeddings request must have."""

    model: str
    input: str | list[str | int | list[int]]


class _ChatResult(msgspec.Struct):
    completion: Raw | msgspec.UnsetType = msgspec.UNSET


class _Embedding(msgspec.Struct):
    index: int
    embedding: Raw
    object: str = "embedding"


class _EmbeddingsResult(msgspec.Struct):
    embeddings: list[_Embedding]
    prompt_tokens: int = 0
    total_tokens: int = 0


class _JobBody(msgspec.Struct):
    payload: Raw
    config_id: str | None = None


class _Health(msgspec.Struct):
    status: str
    worker_connected: bool
    pending_jobs: int
    workers: list[WorkerView]


class Refused(Exception):
    """A request is answered with this status and text."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class RestRoutes:
    """Serves everything for callers and operators."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to add to the application."""
        return [
            web.get("/health", self.health),
            web.get("/v1/models", self.models),
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/embeddings", self.embeddings),
            web.post("/jobs", self.create_job),
            web.get("/jobs", self.list_jobs),
            web.get("/jobs/{job_id}", self.get_job),
            web.delete("/jobs/{job_id}", self.revoke_job),
            web.post("/jobs/{job_id}/revoke", self.revoke_job),
            web.get("/ledger", self.ledger),
            web.get("/misbehave", self.misbehaviours),
            web.post("/misbehave", self.misbehave),
            web.delete("/misbehave", self.behave),
        ]

    # ------------------------------------------------------------------ transient

    async def chat(self, request: web.Request) -> web.Response:
        """Answer a chat completion, never streamed: with ``result.completion``, or the whole result."""
        body = await request.read()
        checked = _decoded(body, _ChatBody)
        job = await self._ask(body, "openai/chat-completion", checked.model)
        result = self._result_of(job)
        try:
            completion = msgspec.json.decode(result, type=_ChatResult).completion
        except DECODE_ERRORS:
            completion = msgspec.UNSET
        return _json(result if completion is msgspec.UNSET else bytes(completion))

    async def embeddings(self, request: web.Request) -> web.Response:
        """Answer an embeddings request in OpenAI's form."""
        body = await request.read()
        checked = _decoded(body, _EmbeddingsBody)
        job = await self._ask(body, "openai/embeddings", checked.model)
        result = self._result_of(job)
        try:
            found = msgspec.json.decode(result, type=_EmbeddingsResult)
        except DECODE_ERRORS:
            return _json(result)
        return _encoded(
            {
                "object": "list",
                "data": found.embeddings,
                "model": checked.model,
                "usage": {"prompt_tokens": found.prompt_tokens, "total_tokens": found.total_tokens},
            }
        )

    async def models(self, _request: web.Request) -> web.Response:
        """List what the registered workers serve."""
        ids = dict.fromkeys(worker.config_id for worker in self._broker.workers())
        data = [{"id": config_id, "object": "model", "owned_by": "gpuward-devqueue"} for config_id in ids]
        return _encoded({"object": "list", "data": data})

    # ------------------------------------------------------------------ persisted

    async def create_job(self, request: web.Request) -> web.Response:
        """Store a job."""
        body = _decoded(await request.read(), _JobBody)
        payload = bytes(body.payload)
        if not payload.startswith(b"{"):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "payload: expected a JSON object")
        job_id = self._broker.submit(payload, Mode.PERSISTED, config_id=body.config_id)
        return _encoded(view_of_job(self._broker.job(job_id)))

    async def list_jobs(self, request: web.Request) -> web.Response:
        """List jobs, oldest first; ``?status=`` and ``?limit=`` narrow it down."""
        wanted = request.query.get("status")
        try:
            status = None if wanted is None else Status(wanted)
        except ValueError:
            known = ", ".join(status.value for status in Status)
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"status = {wanted!r}: expected one of {known}"
            ) from None
        return _encoded({"jobs": self._broker.jobs(status, _limit(request, LIST_LIMIT))})

    async def get_job(self, request: web.Request) -> web.Response:
        """Show one job."""
        return _encoded(view_of_job(self._broker.job(JobId(request.match_info["job_id"]))))

    async def revoke_job(self, request: web.Request) -> web.Response:
        """End a job nobody wants any more."""
        job_id = JobId(request.match_info["job_id"])
        self._broker.revoke(job_id, request.query.get("reason", "revoked by caller"))
        return _encoded(view_of_job(self._broker.job(job_id)))

    # ------------------------------------------------------------------ operators

    async def health(self, _request: web.Request) -> web.Response:
        """Show whether workers are there and jobs wait."""
        workers = [view_of_worker(worker) for worker in self._broker.workers()]
        return _encoded(
            _Health(
                status="ok",
                worker_connected=bool(workers),
                pending_jobs=self._broker.pending(),
                workers=workers,
            )
        )

    async def ledger(self, request: web.Request) -> web.Response:
        """Show the counters and what happened to the newest jobs, or to ``?job=`` alone."""
        job_id = request.query.get("job")
        if job_id is not None:
            return _encoded(
                {"counters": self._broker.counters(), "jobs": {job_id: self._broker.page(JobId(job_id))}}
            )
        return _encoded(self._broker.report(_limit(request, LEDGER_LIMIT)))

    async def misbehaviours(self, _request: web.Request) -> web.Response:
        """List the faults still due."""
        return _encoded(self._broker.script.due())

    async def misbehave(self, request: web.Request) -> web.Response:
        """Make a fault due: ``{"fault": …, "times": …, "code": …}``."""
        what: Misbehaviour = from_fields(_decoded(await request.read(), dict[str, object]))
        self._broker.script.add(what)
        return _encoded(what)

    async def behave(self, request: web.Request) -> web.Response:
        """Call off all faults, or ``?fault=`` alone."""
        name = request.query.get("fault")
        try:
            self._broker.script.clear(None if name is None else Fault(name))
        except ValueError:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"no misbehaviour is called {name!r}") from None
        return _encoded(self._broker.script.due())

    # ------------------------------------------------------------------ inside

    async def _ask(self, body: bytes, task: str, model: str) -> Job:
        fields = _decoded(body, dict[str, Raw])
        fields["task"] = Raw(msgspec.json.encode(task))
        # A model that some worker serves by name goes there; any other name goes to any worker.
        serves_it = any(worker.config_id == model for worker in self._broker.workers())
        return await self._broker.ask(msgspec.json.encode(fields), model if serves_it else None)

    def _result_of(self, job: Job) -> bytes:
        match job.status:
            case Status.COMPLETED:
                assert job.result is not None, "a completed job has a result"
                return job.result
            case Status.TIMED_OUT:
                timeout_s = float(self._broker.config.timeout_s)
                raise Refused(HTTPStatus.GATEWAY_TIMEOUT, f"Job {job.id} timed out after {timeout_s}s")
            case Status.REVOKED:
                raise Refused(HTTPStatus.BAD_GATEWAY, f"Job {job.id} was revoked")
            case _:
                raise Refused(HTTPStatus.BAD_GATEWAY, job.error or "")


@web.middleware
async def errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn our own errors into HTTP answers that both kinds of clients can read."""
    try:
        return await handler(request)
    except Refused as refused:
        return _error(refused.status, refused.message)
    except UnknownJob as unknown:
        return _error(HTTPStatus.NOT_FOUND, str(unknown))
    except AlreadyTerminal as terminal:
        return _error(HTTPStatus.CONFLICT, str(terminal))
    except NoWorker as busy:
        return _error(HTTPStatus.SERVICE_UNAVAILABLE, str(busy))
    except DevQueueError as refused:
        return _error(HTTPStatus.UNPROCESSABLE_ENTITY, str(refused))


def _decoded(body: bytes, shape: type[T]) -> T:
    try:
        # Parts that are passed on unread would otherwise carry bad UTF-8 into a text frame.
        body.decode()
        return msgspec.json.decode(body, type=shape)
    except DECODE_ERRORS as refusal:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"request body: {refusal}") from None


def _limit(request: web.Request, default: int) -> int:
    text = request.query.get("limit", str(default))
    if not text.isdecimal():
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"limit = {text!r}: expected a whole number")
    return int(text)


def _json(body: bytes, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _encoded(value: object) -> web.Response:
    return _json(msgspec.json.encode(value))


def _error(status: HTTPStatus, message: str) -> web.Response:
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    body = {"detail": message, "error": {"message": message, "type": kind, "code": int(status)}}
    return _json(msgspec.json.encode(body), status)
