"""Knows the continuous batch of a simulated engine: who holds a slot, who waits, when the next token is due.

Pure and standard library only: time is an argument, and the engine child, which loads this, stays small.
"""

from collections import OrderedDict

#: Request id, tokens made since the last output, finish reason ("" while the request runs).
Output = tuple[int, int, str]

# Tokens of neighbouring requests fall due on the same tick; this absorbs the rounding of the grid.
_TICK_SLACK_S = 1e-6


class Sequence:
    """One request inside the engine.

    Attributes:
        tokens_left: Tokens still to make.
        reason: Finish reason of the last output.
        factor: How many times slower than the engine this request runs.
        step_s: Seconds per token, set on admission.
        due_s: When the next token is due, set on admission.
    """

    __slots__ = ("due_s", "factor", "reason", "step_s", "tokens_left")

    def __init__(self, tokens: int, reason: str, factor: float) -> None:
        self.tokens_left = tokens
        self.reason = reason
        self.factor = factor
        self.step_s = 0.0
        self.due_s = 0.0


class Scheduler:
    """Slots, the line before them, and the clockwork of tokens.

    Args:
        slots: Requests that run at the same time, at least 1.
        token_s: Seconds per token; 0 makes all tokens of a request at once.
        prefill_s: Seconds between a request's admission and its first token.
    """

    def __init__(self, slots: int, token_s: float, prefill_s: float) -> None:
        self._slots = slots
        self._token_s = token_s
        self._prefill_s = prefill_s
        self._factor = 1.0
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()
        self._running: dict[int, Sequence] = {}

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    def add(self, request_id: int, tokens: int, reason: str, factor: float = 1.0) -> None:
        """Put a request at the end of the line.

        Args:
            request_id: Unique among the requests of this engine.
            tokens: Tokens to make; 0 for a request that is done after its prefill.
            reason: Finish reason to report with the last token.
            factor: How many times slower than usual this request runs, above 0.
        """
        self._waiting[request_id] = Sequence(tokens, reason, factor)

    def abort(self, request_id: int) -> None:
        """Forget a request; unknown ids are fine, since an abort can cross the last output."""
        if self._waiting.pop(request_id, None) is None:
            self._running.pop(request_id, None)

    def abort_all(self) -> list[Output]:
        """End every request with the finish reason `abort`."""
        outputs = [(request_id, 0, "abort") for request_id in (*self._running, *self._waiting)]
        self._running.clear()
        self._waiting.clear()
        return outputs

    def slow_down(self, factor: float) -> None:
        """Make the whole engine slower from the next token on.

        Args:
            factor: Times the usual time per token, above 0. An engine without a time per token gets 20 ms.
        """
        self._factor = factor
        for sequence in self._running.values():
            sequence.step_s = self._pace_s(sequence)

    def admit(self, now_s: float) -> None:
        """Give free slots to those who wait longest."""
        while self._waiting and len(self._running) < self._slots:
            request_id, sequence = self._waiting.popitem(last=False)
            sequence.step_s = step_s = self._pace_s(sequence)
            first_s = now_s + self._prefill_s * sequence.factor * self._factor
            # All requests step on one grid, as a batch does: one wake-up serves every slot.
            sequence.due_s = (first_s // step_s + 1) * step_s if step_s and sequence.tokens_left else first_s
            self._running[request_id] = sequence

    def step(self, now_s: float) -> list[Output]:
        """Make the tokens that are due, free the slots of finished requests, fill them again."""
        outputs: list[Output] = []
        while True:
            self.admit(now_s)
            done = []
            for request_id, sequence in self._running.items():
                if sequence.due_s > now_s + _TICK_SLACK_S:
                    continue
                made = sequence.tokens_left
                if sequence.step_s:
                    late_steps = int((now_s + _TICK_SLACK_S - sequence.due_s) / sequence.step_s)
                    made = min(made, 1 + late_steps)
                sequence.tokens_left -= made
                sequence.due_s += made * sequence.step_s
                if sequence.tokens_left:
                    outputs.append((request_id, made, ""))
                else:
                    outputs.append((request_id, made, sequence.reason))
                    done.append(request_id)
            for request_id in done:
                del self._running[request_id]
            if not done or not self._waiting:
                return outputs

    def next_due_s(self) -> float | None:
        """When `step` has something to do, or None while nothing runs."""
        if not self._running:
            return None
        return min(sequence.due_s for sequence in self._running.values())

    def _pace_s(self, sequence: Sequence) -> float:
        factor = sequence.factor * self._factor
        token_s = self._token_s
        if factor != 1.0 and not token_s:
            token_s = 0.02
        return token_s * factor
