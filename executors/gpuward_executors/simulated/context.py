"""Knows what every route shares: options, engine, metrics, armed faults, request ids, admission."""

import random
import re
from typing import Protocol

from gpuward_executors.simulated.engine_link import EngineLink
from gpuward_executors.simulated.faults import Fault, FaultKind, FaultPlan, parse_fault
from gpuward_executors.simulated.http_errors import bad_request, engine_busy, engine_dead, model_not_found
from gpuward_executors.simulated.metrics import Metrics
from gpuward_executors.simulated.options import Options

_FAULT_MARK = "FAULT:"


class FaultyBody(Protocol):
    """A request body that may ask for a fault."""

    gpuward_fault: str | None


class Context:
    """One running engine, as its routes see it.

    Args:
        options: The command line.
        engine: The engine child.
        metrics: Counters of this engine.
    """

    def __init__(self, options: Options, engine: EngineLink, metrics: Metrics) -> None:
        self.options = options
        self.engine = engine
        self.metrics = metrics
        self.faults = FaultPlan(options.faults)
        #: Once set, requests that lose their engine are cut off rather than answered.
        self.cut_streams = False
        self.random = random.Random(options.seed)

    def request_id(self, prefix: str) -> str:
        """Return a fresh id such as `chatcmpl-…`; a `--seed` makes them repeatable."""
        return f"{prefix}-{self.random.getrandbits(128):032x}"

    def check_model(self, model: str | None) -> str:
        """Return the name to answer with.

        Raises:
            ApiError: 404, the engine does not serve this model.
        """
        if model is None:
            return self.options.served_names[0]
        if model not in self.options.served_names:
            raise model_not_found(model, self.options.served_names)
        return model

    def check_length(self, prompt_tokens: int, characters: int, tokens_max: int | None) -> int:
        """Return how many tokens the answer may have.

        Args:
            prompt_tokens: Tokens of the prompt.
            characters: Its length, for the message.
            tokens_max: The caller's limit, None for none.

        Raises:
            ApiError: 400, prompt or limit do not fit the model's context.
        """
        limit = self.options.max_model_len
        if prompt_tokens >= limit:
            raise bad_request(
                f"This model's maximum context length is {limit} tokens. However, your prompt contains "
                f"{characters} characters (about {prompt_tokens} tokens). "
                "Please reduce the length of the input prompt.",
                "input_text",
            )
        if tokens_max is None:
            return limit - prompt_tokens
        if tokens_max < 1:
            raise bad_request(f"max_tokens must be at least 1, got {tokens_max}.", "max_tokens")
        if tokens_max > limit:
            raise bad_request(
                f"max_tokens={tokens_max} cannot be greater than max_model_len={limit}. "
                "Please request fewer output tokens.",
                "max_tokens",
            )
        return min(tokens_max, limit - prompt_tokens)

    def fault_for(self, body: FaultyBody, text: str) -> Fault | None:
        """Return the fault that this request meets: its own wish, or the armed one whose turn it is.

        Args:
            body: The decoded request.
            text: What the request says; a first word of `FAULT:KIND` is a wish too.

        Raises:
            ApiError: 400, the wish is no fault we know.
        """
        armed = self.faults.next_request()
        wish = None
        if self.options.allow_faults:
            wish = body.gpuward_fault
            if wish is None and text.startswith(_FAULT_MARK):
                wish = re.split(r"\s", text.removeprefix(_FAULT_MARK), maxsplit=1)[0]
        if wish is None:
            if armed is not None and armed.kind is FaultKind.SLOW:
                # Asked for by a request it slows that request; armed, the whole engine from here on.
                self.engine.inflict(armed)
                return None
            return armed
        try:
            return parse_fault(wish)
        except ValueError as error:
            raise bad_request(str(error), "gpuward_fault") from error

    def check_room(self) -> None:
        """Refuse what the engine cannot take.

        Raises:
            ApiError: 500 without an engine, 503 with too many requests in flight.
        """
        if self.engine.dead:
            raise engine_dead()
        limit = self.options.max_num_queued_reqs
        if limit is not None and self.engine.in_flight >= limit:
            self.metrics.rejections += 1
            raise engine_busy()
