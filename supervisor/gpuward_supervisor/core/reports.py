"""The outbox: terminal reports that a source has not provably received, and their way out.

A report is uploading (large result), unsent (no registered connection) or sent (under a number, on this
connection). It leaves the outbox when the peer has read it, when the job is revoked, or when a newer
dispatch of the job makes it void. Persisted ones are durable from the moment they are owed.
"""

from __future__ import annotations

from gpuward_ipc.types import Fence
from gpuward_supervisor.core import leases
from gpuward_supervisor.core.commands import (
    AbandonTransfer,
    ForgetBody,
    Note,
    Remember,
    ReportError,
    ReportResult,
    ReportResultRef,
    Unremember,
    UploadResult,
)
from gpuward_supervisor.core.events import (
    BodyId,
    ReportsDelivered,
    ReportSeq,
    ResultRecovered,
    ResultUploaded,
    ResultUploadFailed,
)
from gpuward_supervisor.core.state import Commands, JobKey, Owed, OwedPhase, Source, State

#: A transient report that nobody could be given is dropped this long after its caller has gone.
TRANSIENT_SLACK_S = 60.0


def owe_result(
    state: State,
    key: JobKey,
    fence: Fence,
    persisted: bool,
    body: BodyId,
    body_bytes: int,
    upload_url: str,
    now_s: float,
    out: Commands,
) -> None:
    """Take a result into the outbox and start it on its way."""
    owed = Owed(key, fence, persisted, body, body_bytes, "", upload_url, now_s)
    _refuse_if_too_large(state, owed, out)
    _keep(state, owed, out)
    _start(state, owed, now_s, out)


def owe_error(
    state: State, key: JobKey, fence: Fence, persisted: bool, error: str, now_s: float, out: Commands
) -> None:
    """Take an error into the outbox and start it on its way."""
    owed = Owed(key, fence, persisted, None, 0, error, "", now_s)
    _keep(state, owed, out)
    _start(state, owed, now_s, out)


def report_again(
    state: State, owed: Owed, fence: Fence, persisted: bool, upload_url: str, now_s: float, out: Commands
) -> None:
    """Report an owed result under the fence of a newer dispatch instead; the old fence is never used again.

    Args:
        state: the state.
        owed: an owed result (not an error).
        fence: the newer fence.
        persisted: mode of the newer dispatch.
        upload_url: upload URL that came with the newer dispatch; empty keeps the old one.
        now_s: the time.
        out: collects the commands.
    """
    _leave_phase(state, owed, out)
    owed.fence = fence
    owed.persisted = owed.persisted or persisted
    owed.owed_at_s = now_s
    owed.uploaded = False
    owed.upload_url = upload_url or owed.upload_url
    if owed.persisted:
        out.append(_remember(owed))
    _start(state, owed, now_s, out)


def give_up(state: State, owed: Owed, out: Commands) -> None:
    """Drop an owed report for good: revoked, void, or too old."""
    _leave_phase(state, owed, out)
    _remove(state, owed, out)


def uploaded(state: State, event: ResultUploaded, now_s: float, out: Commands) -> None:
    """A result lies at its upload URL: report the reference."""
    owed = _in_upload(state, event)
    if owed is None:
        return
    state.uploading -= 1
    owed.uploaded = True
    _send_or_queue(state, owed, now_s, out)


def upload_failed(state: State, event: ResultUploadFailed, now_s: float, out: Commands) -> None:
    """A result could not be uploaded: send it inline if it is small enough, else report that."""
    owed = _in_upload(state, event)
    if owed is None:
        return
    state.uploading -= 1
    if owed.body_bytes > state.policy.inline_result_max_bytes:
        _make_too_large(state, owed, f", and its upload failed: {event.error}", out)
        out.append(_remember(owed))
    out.append(
        Note(
            level="warning",
            event="report.upload_failed",
            facts={
                "source": event.source,
                "job_id": event.job_id,
                "error": event.error,
                "inline": owed.body is not None,
            },
        )
    )
    _send_or_queue(state, owed, now_s, out)


def delivered(state: State, event: ReportsDelivered, _now_s: float, out: Commands) -> None:
    """The peer has read every report up to a number: they are owed no longer."""
    source = state.sources[event.source]
    if source.connection != event.connection:
        return
    sent = source.sent
    while sent and sent[0][0] <= event.seq:
        seq, owed = sent.popleft()
        if owed.seq == seq and owed.phase is OwedPhase.SENT:
            state.counters.delivered += 1
            _remove(state, owed, out)


def recovered(state: State, event: ResultRecovered, now_s: float, out: Commands) -> None:
    """The journal still held a report: owe it as before."""
    key = (event.source, event.job_id)
    if event.source not in state.sources or key in state.owed or key in state.jobs:
        # It stays in the journal: the source may be configured again at the next start.
        if event.body is not None:
            out.append(ForgetBody(body=event.body))
        out.append(
            Note(
                level="error",
                event="report.not_owed",
                facts={"source": event.source, "job_id": event.job_id, "fence": event.fence},
            )
        )
        return
    owed = Owed(
        key, event.fence, True, event.body, event.body_bytes, event.error, event.result_upload_url, now_s
    )
    state.owed[key] = owed
    state.sources[event.source].owed += 1
    _refuse_if_too_large(state, owed, out)
    _start(state, owed, now_s, out)


def connection_lost(state: State, source: Source, now_s: float, out: Commands) -> None:
    """What was sent and not read by the peer is unsent again, in its old order."""
    lost = [owed for seq, owed in source.sent if owed.seq == seq and owed.phase is OwedPhase.SENT]
    source.sent.clear()
    if not lost:
        return
    # While a connection is registered nothing is unsent, so there is nothing to keep the order with.
    source.unsent = {owed.key[1]: owed for owed in lost}
    for owed in lost:
        owed.phase = OwedPhase.UNSENT
    # Sending follows the order of uploads, too; patience follows age.
    for owed in sorted((o for o in lost if not o.persisted), key=lambda o: o.owed_at_s):
        source.unsent_transient[owed.key[1]] = owed
    _bound(state, source, out)
    drop_expired(state, source, now_s, out)


def flush(state: State, source: Source, out: Commands) -> None:
    """Send everything that is unsent, oldest first; for a source that has just been registered."""
    unsent = source.unsent
    source.unsent = {}
    source.unsent_transient.clear()
    for owed in unsent.values():
        _send(state, source, owed, out)


def drop_expired(state: State, source: Source, now_s: float, out: Commands) -> None:
    """Give up unsent transient reports whose caller has gone long ago."""
    while source.unsent_transient:
        owed = next(iter(source.unsent_transient.values()))
        if owed.owed_at_s + state.policy.transient_wait_s + TRANSIENT_SLACK_S > now_s:
            return
        _drop(state, owed, "its caller has gone", "warning", out)


def next_expiry(state: State, source: Source) -> float | None:
    """When the next unsent transient report is given up; None for none."""
    if not source.unsent_transient:
        return None
    oldest = next(iter(source.unsent_transient.values()))
    return oldest.owed_at_s + state.policy.transient_wait_s + TRANSIENT_SLACK_S


def _keep(state: State, owed: Owed, out: Commands) -> None:
    state.owed[owed.key] = owed
    state.sources[owed.key[0]].owed += 1
    if owed.persisted:
        out.append(_remember(owed))


def _uploadable(state: State, owed: Owed) -> bool:
    return owed.persisted and owed.upload_url != "" and owed.body_bytes > state.policy.upload_threshold_bytes


def _refuse_if_too_large(state: State, owed: Owed, out: Commands) -> None:
    if owed.body_bytes > state.policy.inline_result_max_bytes and not _uploadable(state, owed):
        _make_too_large(state, owed, "", out)


def _make_too_large(state: State, owed: Owed, why_not_uploaded: str, out: Commands) -> None:
    assert owed.body is not None, f"{owed.key}: an error report has no size"
    out.append(ForgetBody(body=owed.body))
    owed.error = (
        f"result too large: {owed.body_bytes} bytes, "
        f"at most {state.policy.inline_result_max_bytes} bytes can be reported inline{why_not_uploaded}"
    )
    owed.body = None
    owed.body_bytes = 0


def _start(state: State, owed: Owed, now_s: float, out: Commands) -> None:
    body = owed.body
    if body is not None and _uploadable(state, owed):
        owed.phase = OwedPhase.UPLOADING
        state.uploading += 1
        source, job_id = owed.key
        # The queue must not dispatch the job again while its result is on the way.
        leases.hold(state.sources[source], job_id, owed.fence, now_s + state.policy.lease_renew_s)
        out.append(
            UploadResult(source=source, job_id=job_id, fence=owed.fence, url=owed.upload_url, body=body)
        )
        return
    _send_or_queue(state, owed, now_s, out)


def _send_or_queue(state: State, owed: Owed, now_s: float, out: Commands) -> None:
    source = state.sources[owed.key[0]]
    job_id = owed.key[1]
    leases.drop(source, job_id)
    if source.registered:
        _send(state, source, owed, out)
        return
    owed.phase = OwedPhase.UNSENT
    source.unsent[job_id] = owed
    if not owed.persisted:
        source.unsent_transient[job_id] = owed
    _bound(state, source, out)
    drop_expired(state, source, now_s, out)


def _send(state: State, source: Source, owed: Owed, out: Commands) -> None:
    connection = source.connection
    assert connection is not None, f"{source.name} is registered without a connection"
    state.last_seq += 1
    seq = ReportSeq(state.last_seq)
    owed.seq = seq
    owed.phase = OwedPhase.SENT
    source.sent.append((seq, owed))
    state.counters.reported += 1
    name, job_id = owed.key
    body = owed.body
    if body is None:
        out.append(
            ReportError(
                source=name, connection=connection, seq=seq, job_id=job_id, fence=owed.fence, error=owed.error
            )
        )
    elif owed.uploaded:
        out.append(
            ReportResultRef(source=name, connection=connection, seq=seq, job_id=job_id, fence=owed.fence)
        )
    else:
        out.append(
            ReportResult(
                source=name, connection=connection, seq=seq, job_id=job_id, fence=owed.fence, body=body
            )
        )


def _remember(owed: Owed) -> Remember:
    return Remember(
        source=owed.key[0],
        job_id=owed.key[1],
        fence=owed.fence,
        body=owed.body,
        error=owed.error,
        result_upload_url=owed.upload_url,
    )


def _in_upload(state: State, event: ResultUploaded | ResultUploadFailed) -> Owed | None:
    owed = state.owed.get((event.source, event.job_id))
    if owed is None or owed.phase is not OwedPhase.UPLOADING or owed.fence != event.fence:
        return None
    return owed


def _leave_phase(state: State, owed: Owed, out: Commands) -> None:
    """Undo what its phase means; an entry in ``sent`` lingers, its number does not fit any more."""
    name, job_id = owed.key
    source = state.sources[name]
    if owed.phase is OwedPhase.UPLOADING:
        state.uploading -= 1
        leases.drop(source, job_id)
        out.append(AbandonTransfer(source=name, job_id=job_id, fence=owed.fence))
    elif owed.phase is OwedPhase.UNSENT:
        source.unsent.pop(job_id, None)
        source.unsent_transient.pop(job_id, None)
    owed.phase = OwedPhase.DONE


def _remove(state: State, owed: Owed, out: Commands) -> None:
    owed.phase = OwedPhase.DONE
    name, job_id = owed.key
    del state.owed[owed.key]
    state.sources[name].owed -= 1
    if owed.persisted:
        out.append(Unremember(source=name, job_id=job_id))
    if owed.body is not None:
        out.append(ForgetBody(body=owed.body))


def _drop(state: State, owed: Owed, reason: str, level: str, out: Commands) -> None:
    state.counters.dropped += 1
    give_up(state, owed, out)
    out.append(
        Note(
            level=level,
            event="report.dropped",
            facts={"source": owed.key[0], "job_id": owed.key[1], "reason": reason},
        )
    )


def _bound(state: State, source: Source, out: Commands) -> None:
    while len(source.unsent) > state.policy.outbox_max and source.unsent_transient:
        owed = next(iter(source.unsent_transient.values()))
        _drop(state, owed, f"more than {state.policy.outbox_max} reports wait to be sent", "error", out)
