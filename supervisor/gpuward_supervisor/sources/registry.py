"""Which settings make which source. A source's libraries are imported only when it is built."""

from __future__ import annotations

from collections.abc import Callable

from gpuward_supervisor.sources.base import BodyStore, CasolaSettings, Post, PostAll, Source

#: Settings of every kind of source there is.
SourceSettings = CasolaSettings


def build_source(
    settings: SourceSettings,
    bodies: BodyStore,
    post: Post,
    post_all: PostAll | None = None,
    backlog: Callable[[], int] = lambda: 0,
) -> Source:
    """Build the source that these settings describe; it is not started yet.

    Args:
        settings: one source's settings.
        bodies: where payloads go and results come from.
        post: takes one event to the loop.
        post_all: takes several at once; ``post`` one by one when None.
        backlog: how many events were posted and not taken by the loop yet; any thread.
    """
    from gpuward_supervisor.sources.casola import CasolaSource

    return CasolaSource(settings, bodies, post, post_all, backlog=backlog)
