"""The ids and small value types that both ends of the executor link share."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

#: Name of an executor, unique on the node and stable over restarts, for example ``gpu0``.
ExecutorName = NewType("ExecutorName", str)
#: Start number of an executor: 1 for its first start, one more for every respawn.
Incarnation = NewType("Incarnation", int)
#: One try of one job on one executor; never reused while the supervisor lives.
RunId = NewType("RunId", int)
#: The queue's id of a job.
JobId = NewType("JobId", str)
#: The queue's fencing token of one dispatch of a job; rises with every dispatch.
Fence = NewType("Fence", int)
#: Name of a job source, for example ``casola``.
SourceName = NewType("SourceName", str)

#: Version of the messages in :mod:`gpuward_ipc.messages`; both ends must agree.
PROTOCOL_VERSION = 1

#: Bodies larger than this travel as a file name instead of a frame, in bytes.
INLINE_BODY_MAX_BYTES = 1024 * 1024


#: Exit code of an executor whose engine can never run as it is configured; another start would end likewise.
EXIT_ENGINE_IMPOSSIBLE = 71


class Fault(StrEnum):
    """Whose fault a failed run is; decides whether it is tried again elsewhere."""

    #: The job itself is bad (the engine refused it); trying again cannot help.
    JOB = "job"
    #: The engine or executor failed; the same job may succeed elsewhere.
    ENGINE = "engine"
