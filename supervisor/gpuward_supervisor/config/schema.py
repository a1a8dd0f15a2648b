"""The TOML file as types: every table and key with type, range, default and meaning; and its JSON schema.

A key that is None here is settled later, from other keys or from the machine.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gpuward_ipc.startup import EngineKind

MIB = 1024 * 1024


class LogLevel(StrEnum):
    """The least level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """The form of a log line."""

    #: `pretty` on a terminal, `json` otherwise.
    AUTO = "auto"
    JSON = "json"
    PRETTY = "pretty"


#: Key of :class:`msgspec.Meta`'s ``extra`` under which a type says in words what it wants.
EXPECTED = "expected"
Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
        extra={EXPECTED: "a name of at most 63 letters, digits, `_`, `.` and `-`"},
    ),
]
ExecutorLabel = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$",
        extra={EXPECTED: "a name of at most 32 letters, digits, `_` and `-`"},
    ),
]
Text = Annotated[str, Meta(min_length=1)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Slots = Annotated[int, Meta(ge=1, le=65536)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
#: Seconds, or 0 for "not at all".
SecondsOrNone = Annotated[float, Meta(ge=0, le=31_536_000)]
Bytes = Annotated[int, Meta(ge=1024)]
#: An index in PCI bus order, or a UUID (`GPU-…`, `MIG-…`) or its unmistakable beginning.
GpuName = int | str
Words = str | tuple[str, ...]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class NodeTable(Table, frozen=True, kw_only=True):
    """[node]: this machine and the supervisor itself."""

    name: Annotated[Name | None, Meta(description="Name in logs; default: the worker id.")] = None
    state_dir: Annotated[
        Text | None,
        Meta(description="Survives a restart: the outbox. Default: /var/lib/gpuward, or under your home."),
    ] = None
    runtime_dir: Annotated[
        Text | None,
        Meta(description="Sockets and temporary files; a short path. Default: under /run, or /tmp."),
    ] = None
    shutdown_grace_s: Annotated[
        SecondsOrNone, Meta(description="How long running jobs may take after a request to stop, in seconds.")
    ] = 5.0
    source_close_s: Annotated[
        Seconds,
        Meta(
            description="How long results may take to be delivered and the connection to close, in seconds."
        ),
    ] = 5.0
    log_level: Annotated[LogLevel, Meta(description="Least level that is logged.")] = LogLevel.INFO
    log_format: Annotated[LogFormat, Meta(description="json, pretty, or auto: pretty on a terminal.")] = (
        LogFormat.AUTO
    )
    job_notes: Annotated[bool, Meta(description="One log line per finished job.")] = True


class CasolaTable(Table, frozen=True, kw_only=True):
    """[source.casola]: the queue that jobs come from."""

    url: Annotated[
        Text | None, Meta(description="Required. Base URL of the queue, ws:// or wss://; `/ws` is appended.")
    ] = None
    config_id: Annotated[Text | None, Meta(description="Required. The configuration this worker serves.")] = (
        None
    )
    worker_id: Annotated[
        Text | None,
        Meta(description="Default: node.name, `runpod-<RUNPOD_POD_ID>`, or `vast-<CONTAINER_ID or pid>`."),
    ] = None
    token_file: Annotated[
        Text | None,
        Meta(description="File with the bearer token; a token itself does not belong into this file."),
    ] = None
    capacity: Annotated[
        Slots | None,
        Meta(description="Jobs at once on the node, spread over its executors; default: all slots."),
    ] = None
    queue_id: Annotated[str, Meta(description="Label in reports.")] = "vllm-queue"
    api_url: Annotated[str | None, Meta(description="Base URL of heartbeats.")] = None
    heartbeat_interval_s: Annotated[
        SecondsOrNone, Meta(description="Interval of heartbeats, in seconds.")
    ] = 60.0
    logs_url: Annotated[str | None, Meta(description="URL to ship logs to.")] = None
    log_flush_interval_s: Annotated[
        SecondsOrNone, Meta(description="Interval of log shipping, in seconds.")
    ] = 30.0
    metrics_url: Annotated[str | None, Meta(description="URL to send system metrics to.")] = None
    backpressure_check_interval_s: Annotated[
        float,
        Meta(le=31_536_000, description="Interval of backpressure checks, in seconds; 0 or less: none."),
    ] = 5.0
    backpressure_pause_threshold: Annotated[
        int, Meta(description="Pause above this many waiting requests.")
    ] = 0
    backpressure_resume_threshold: Annotated[
        int, Meta(description="Resume at this many waiting requests.")
    ] = 0
    expected_gpu_name: Annotated[str | None, Meta(description="Part of the name that GPUs must have.")] = None
    expected_vram_gb: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="Memory that GPUs must have, in GB.")
    ] = None


#: Keys of [source.casola] that are read and kept, but that nothing acts upon in this version.
CASOLA_NOT_USED_YET = frozenset({
    "queue_id", "api_url", "heartbeat_interval_s", "logs_url", "log_flush_interval_s", "metrics_url",
    "backpressure_check_interval_s", "backpressure_pause_threshold", "backpressure_resume_threshold",
    "expected_gpu_name", "expected_vram_gb",
})  # fmt: skip


#: Keys that people look for and that are not there -> what to do instead.
ADVICE: dict[tuple[str | int, ...], str] = {
    (
        "source",
        "casola",
        "token",
    ): "write the token into a file that token_file names, or set CASOLA_API_TOKEN",
    ("executors", "hf_token"): "write the token into a file that hf_token_file names, or set HF_TOKEN",
    ("executors", "port"): "write port_base, the port of the first executor",
    ("executors", "engine", "port"): "write executors.port_base, or port of an [[executor]]",
}


class SourceTable(Table, frozen=True, kw_only=True):
    """[source]: where jobs come from."""

    casola: CasolaTable = CasolaTable()


class EngineTable(Table, frozen=True, kw_only=True):
    """[executors.engine], and engine of an [[executor]] where it differs."""

    kind: Annotated[
        EngineKind,
        Meta(description="vllm; command: any OpenAI-compatible server; simulated: no GPU; echo: no engine."),
    ] = EngineKind.VLLM
    model: Annotated[str, Meta(description="Model argument of the engine.")] = "meta-llama/Llama-2-7b-chat-hf"
    served_model_name: Annotated[
        Text, Meta(description="Name that requests to the engine carry as `model`.")
    ] = "default"
    host: Annotated[Text, Meta(description="Address that the engine listens on.")] = "127.0.0.1"
    serve_command: Annotated[
        Text, Meta(description="Program of the vllm kind, called as `<command> serve <model> …`.")
    ] = "vllm"
    extra_args: Annotated[
        Words, Meta(description="Arguments after ours: a list, or a text that is split as a shell would.")
    ] = ()
    command: Annotated[
        Words,
        Meta(
            description="Program of the command kind; in it {host}, {port}, {model}, {served_model_name} "
            "and {gpus} are replaced."
        ),
    ] = ()
    health_path: Annotated[
        str,
        Meta(
            pattern="^/",
            extra={EXPECTED: "a path that begins with `/`"},
            description="Path that answers 200 once the engine can work.",
        ),
    ] = "/health"
    start_timeout_s: Annotated[
        Seconds, Meta(description="From its start to its first healthy answer, in seconds.")
    ] = 600.0
    request_timeout_s: Annotated[
        Seconds, Meta(description="Deadline of one request to the engine, in seconds.")
    ] = 600.0
    stop_grace_s: Annotated[
        SecondsOrNone, Meta(description="From TERM to KILL when it is stopped, in seconds.")
    ] = 5.0


class ExecutorsTable(Table, frozen=True, kw_only=True):
    """[executors]: how the GPUs are shared out, and what all executors have in common."""

    gpus: Annotated[
        Literal["each", "none"] | int | tuple[GpuName | tuple[GpuName, ...], ...],
        Meta(
            description="each: one executor per GPU or group; none: executors without a GPU; a number: the "
            "first so many GPUs; a list of indices and UUIDs; a list of lists: one executor per inner list.",
            extra={
                EXPECTED: '"each", "none", a number of GPUs, a list of indices and UUIDs, or a list of lists'
            },
        ),
    ] = "each"
    gpus_per_executor: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | None,
        Meta(description="Size of a group; default: what the parallel sizes in extra_args ask for, else 1."),
    ] = None
    count: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None,
        Meta(description='With gpus = "none": how many executors; default 1.'),
    ] = None
    slots: Annotated[Slots | None, Meta(description="Jobs at once per executor; default 1.")] = None
    port_base: Annotated[Port, Meta(description="Engine port of the first executor.")] = 8000
    port_block: Annotated[
        int,
        Meta(
            ge=1, le=10_000, description="Distance to the next executor's port; the block is its own to use."
        ),
    ] = 16
    hf_token_file: Annotated[
        Text | None,
        Meta(description="File with the Hugging Face token; only engines that load models get it."),
    ] = None
    environment: Annotated[
        dict[str, str],
        Meta(description="Environment variables added for executors and their engines. No secrets."),
    ] = {}
    heartbeat_s: Annotated[Seconds, Meta(description="Interval of an executor's heartbeats, in seconds.")] = (
        1.0
    )
    heartbeat_timeout_s: Annotated[
        Seconds, Meta(description="Silence after which an executor is killed, in seconds.")
    ] = 15.0
    hello_timeout_s: Annotated[
        Seconds, Meta(description="From an executor's spawn to its first word, in seconds.")
    ] = 30.0
    engine: EngineTable = EngineTable()


class ExecutorTable(Table, frozen=True, kw_only=True):
    """[[executor]]: one executor of a node that lists all of its executors."""

    name: Annotated[
        ExecutorLabel | None,
        Meta(description="Unique on the node. Default: made of its GPUs, as gpu0 or gpu0-1."),
    ] = None
    gpus: Annotated[
        Literal["none"] | tuple[GpuName, ...] | None,
        Meta(description="Its GPUs, by index or UUID; none: no GPU."),
    ] = None
    slots: Annotated[Slots | None, Meta(description="Jobs at once.")] = None
    port: Annotated[
        Port | None, Meta(description="Engine port; default: its place in the blocks of [executors].")
    ] = None
    environment: Annotated[
        dict[str, str], Meta(description="Added to executors.environment for this executor.")
    ] = {}
    engine: Annotated[
        EngineTable,
        Meta(description="Only what differs: every key left out is taken from [executors.engine]."),
    ] = EngineTable()


class RestartsTable(Table, frozen=True, kw_only=True):
    """[restarts]: how an executor that died comes back."""

    backoff_first_s: Annotated[
        Seconds, Meta(description="Delay after a first death, in seconds; doubles each time.")
    ] = 1.0
    backoff_max_s: Annotated[Seconds, Meta(description="Longest delay, in seconds.")] = 60.0
    backoff_jitter: Annotated[
        float, Meta(ge=0, le=1, description="Random share added to a delay, 0 to 1.")
    ] = 0.2
    backoff_reset_s: Annotated[
        Seconds, Meta(description="An engine that was ready this long starts again with the first delay.")
    ] = 60.0
    intensity: Annotated[
        int, Meta(ge=0, description="More deaths than this within period_s: the executor is given up.")
    ] = 10
    period_s: Annotated[Seconds, Meta(description="Period of intensity, in seconds.")] = 600.0


class DispatchTable(Table, frozen=True, kw_only=True):
    """[dispatch]: how jobs are handed out."""

    attempts_max: Annotated[
        int, Meta(ge=0, le=100, description="Further tries of a job whose executor failed it.")
    ] = 2
    transient_wait_s: Annotated[
        Seconds, Meta(description="How long the caller of a transient job waits, in seconds.")
    ] = 120.0
    lease_renew_s: Annotated[
        float, Meta(gt=0, le=30, description="Interval of lease renewals, in seconds; 30 at most.")
    ] = 20.0
    reassign_after_s: Annotated[
        Seconds,
        Meta(description="A run that an executor does not know for this long is assigned again, in seconds."),
    ] = 5.0
    capacity_settle_s: Annotated[
        SecondsOrNone, Meta(description="Strict pause after a loss of slots, in seconds.")
    ] = 1.0
    reregister_min_s: Annotated[
        Seconds, Meta(description="Least time between registrations on one connection, in seconds.")
    ] = 5.0


class LimitsTable(Table, frozen=True, kw_only=True):
    """[limits]: sizes."""

    inbound_max_bytes: Annotated[Bytes, Meta(description="Largest frame taken from the queue.")] = 64 * MIB
    inline_result_max_bytes: Annotated[Bytes, Meta(description="Largest result sent in a frame.")] = 64 * MIB
    upload_threshold_bytes: Annotated[
        int, Meta(ge=0, description="Larger results are uploaded when the job has an upload URL.")
    ] = 262_144
    transfer_max_bytes: Annotated[Bytes, Meta(description="Largest payload download or result upload.")] = (
        1024 * MIB
    )
    outbox_max: Annotated[
        int,
        Meta(ge=1, description="Results kept while the queue is away; the oldest transient ones go first."),
    ] = 100_000


class ConfigFile(Table, frozen=True, kw_only=True):
    """A configuration file of gpuward."""

    node: NodeTable = NodeTable()
    source: SourceTable = SourceTable()
    executors: ExecutorsTable = ExecutorsTable()
    executor: Annotated[
        tuple[ExecutorTable, ...],
        Meta(description="All executors one by one; without it, executors.gpus makes them."),
    ] = ()
    restarts: RestartsTable = RestartsTable()
    dispatch: DispatchTable = DispatchTable()
    limits: LimitsTable = LimitsTable()


def json_schema() -> dict[str, object]:
    """The JSON schema of the file, for editors and checkers."""
    schema = msgspec.json.schema(ConfigFile)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gpuward configuration",
        **schema,
    }
