"""Pieces of an answer as the engine's outputs come."""

from __future__ import annotations

import asyncio

import pytest

from gpuward_executors.simulated.answers import Answer
from gpuward_executors.simulated.engine_link import EngineDead, Ticket
from gpuward_executors.simulated.streaming import pieces, usage_of
from support.simulated_engine import SimulatedEngine, chat_body


def test_each_output_is_a_piece() -> None:
    async def story() -> list[str]:
        ticket = Ticket(1, 5, streamed=True)
        answer = Answer("sim:a b c", tokens_max=10)
        seen = []
        ticket.advance(1, "", 1.0)
        async for piece in pieces(ticket, answer):
            seen.append(piece)
            if not ticket.finish_reason:
                ticket.advance(2, "stop", 2.0)
        return seen

    assert asyncio.run(story()) == ["sim:a ", "b c"]


def test_an_abort_without_more_tokens_ends_the_pieces() -> None:
    async def story() -> list[str]:
        ticket = Ticket(1, 5, streamed=True)
        ticket.advance(0, "abort", 1.0)
        return [piece async for piece in pieces(ticket, Answer("sim:a", tokens_max=10))]

    assert asyncio.run(story()) == []


def test_a_death_ends_the_pieces_loudly() -> None:
    async def story() -> None:
        ticket = Ticket(1, 5, streamed=True)
        ticket.dead = True
        async for _ in pieces(ticket, Answer("sim:a", tokens_max=10)):
            pytest.fail("a piece of a dead engine")

    with pytest.raises(EngineDead):
        asyncio.run(story())


def test_usage_adds_up() -> None:
    ticket = Ticket(1, 5, streamed=False)
    ticket.advance(3, "stop", 1.0)
    usage = usage_of(ticket)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 3, 8)


def test_events_are_separated_and_typed(engine: SimulatedEngine) -> None:
    body = chat_body("a b", stream=True)
    with engine.open_request("/v1/chat/completions", body) as connection:
        raw = b""
        while b"[DONE]\n\n" not in raw:
            received = connection.recv(65536)
            assert received, raw
            raw += received
    head, _, _ = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/event-stream" in head
