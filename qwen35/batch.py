"""Many prompts at once: they wait, join when a place is free, and leave when they are answered.

prompts -> Requests -> what all of them begin with, read once -> [a fork of it and a native stream
for each that joins -> steps of all that run] -> Generations in the order of the prompts. How a step
is shared out, and the arithmetic, are the core's business; an answer's text and end are Record's.
"""

from __future__ import annotations

import operator
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ClosedError
from .progress import Progress, bar_for
from .prompt import is_messages
from .record import Record
from .request import Request, make_request
from .results import FinishReason, Generation
from .session import Session, common_prefix

if TYPE_CHECKING:
    from . import _core
    from .model import Model
    from .sampling import SamplingParams

MAX_BATCH = 64  # the core's QWEN35_MAX_BATCH
SHARED_TOKENS = 64  # a shorter common start is read with each prompt: that costs less than a fork


def make_requests(
    model: Model,
    prompts: Iterable[Any],
    sampling: SamplingParams | None,
    fields: dict[str, Any],
    *,
    thinking_budget: int | None,
) -> list[Request]:
    """A Request for each prompt; its errors name the prompt. With seed=s the i-th has s + i."""
    from .sampling import SamplingParams

    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
        raise TypeError(
            f"prompts: expected a list of prompts, got {type(prompts).__name__}; put a single "
            "one in a list"
        )
    seed = SamplingParams.merge(SamplingParams(), sampling, **fields).seed
    requests = []
    for index, prompt in enumerate(prompts):
        own = fields if seed is None else {**fields, "seed": (seed + index) % 2**64}
        with _naming(index):
            if is_messages(prompt):
                made = model._prompts.from_messages(prompt, None, None, None)
            else:
                made = model._prompts.make(prompt, where="prompt")
            requests.append(
                make_request(model, made, sampling, own, thinking_budget=thinking_budget)
            )
    return requests


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """What is wrong with a prompt is told with its place."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if len(error.args) == 1:
            error.args = (f"prompts[{index}]: {error}",)
        raise


def places(max_batch: int, prompts: int) -> int:
    """How many sequences run at once: max_batch within 1 to MAX_BATCH, and no more than prompts."""
    try:
        wanted = operator.index(max_batch)
    except TypeError:
        raise TypeError(
            f"max_batch={max_batch!r}: expected an integer from 1 to {MAX_BATCH}"
        ) from None
    return max(1, min(wanted, MAX_BATCH, prompts))


@dataclass(frozen=True)
class _Member:
    """A prompt that has joined."""

    record: Record
    native: _core.NativeStream


class Batch:
    """One call of `Model.generate_batch`. `cancel` may be called from any thread, the rest not."""

    def __init__(
        self, model: Model, requests: Sequence[Request], *, max_batch: int, progress: Progress
    ) -> None:
        self._model = model
        self._requests = requests
        self._records = [Record(request) for request in requests]
        self._waiting = deque(range(len(requests)))
        self._running: list[_Member] = []
        self._places = places(max_batch, len(requests))
        self._shared: Session | None = None  # holds what all prompts begin with
        self._reading: _core.NativeStream | None = None  # that, while it is read
        self._cancelled = False
        self._tell: Callable[[int, int], object] = lambda done, total: None
        self._bar_close: Callable[[], None] = lambda: None
        self._watch(model._progress if progress is None else progress)

    def run(self) -> list[Generation]:
        """All answers. An interrupt or error in any of them ends all; the model goes on."""
        try:
            core = self._model._native().batch(self._places)
            self._read_shared()
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self._places:
                    self._join(self._waiting.popleft())
                self._step(core)
        finally:
            self._release()
        self._warn_of_empty()
        return [record.generation() for record in self._records]

    def cancel(self) -> None:
        """End all of them at the next poll: the model is being closed."""
        self._cancelled = True
        for native in [self._reading, *(member.native for member in list(self._running))]:
            if native is not None:
                native.cancel()

    def _shut(self) -> None:
        self.cancel()

    # How it runs

    def _read_shared(self) -> None:
        """Read the common start of all prompts, but for their last tokens, where it is worth it."""
        if len(self._requests) < 2:
            return
        keys = [request.prompt.keys for request in self._requests]
        shared = min(map(len, keys)) - 1
        for other in keys[1:]:
            shared = min(shared, common_prefix(keys[0], other))
        if shared < SHARED_TOKENS:
            return
        start, record = self._requests[0].prompt.head(shared), self._records[0]
        record.clock.start()
        self._shared, _ = self._model._pool.take(start.keys, self._model)
        record.cached = self._shared._rewind(start)
        core = self._shared._open()
        at, end = core.position, len(start)
        shown = self._model._shown(start, at, end, poll=self._poll)
        self._reading = core.generate(start.ids[at:], max_tokens=0, **shown)
        self._poll()
        for _ in self._reading:
            pass
        record.clock.add(self._reading.timings, decode=False)
        self._reading = None
        self._poll()
        self._shared._mark()

    def _join(self, index: int) -> None:
        """Start a prompt: a session of its own, and a native stream for what is to be read."""
        request, record = self._requests[index], self._records[index]
        prompt = request.prompt
        if not record.clock.started:
            record.clock.start()
        if self._shared is None:
            core = self._model._core_session(self._model.context)
        else:
            core = self._shared._open().fork()
            record.cached = record.cached if index == 0 else core.position
        shown = self._model._shown(prompt, core.position, len(prompt), poll=self._poll)
        member = _Member(record, request.open(core, **shown))
        record.force_thinking_end(member.native)
        self._running.append(member)

    def _step(self, core: _core.Batch) -> None:
        """One token, or a part of a prompt, for each that runs."""
        self._poll()
        said = core.step([member.native for member in self._running])
        self._poll()
        for member, token in zip(self._running, said, strict=True):
            reason: FinishReason | None = None
            if token is not None:
                reason = member.record.take(token, member.native)
            elif member.native.finish_reason is not None:
                reason = "length"
            if reason is not None:
                member.record.end(reason, member.native)
                self._model._finished(member.record.generation())
        self._running = [member for member in self._running if member.record.reason is None]
        total = len(self._records)
        self._tell(total - len(self._waiting) - len(self._running), total)

    def _poll(self) -> None:
        """ClosedError once the model is closed."""
        if self._cancelled:
            self._model._gate.check()
            raise ClosedError("the batch was cancelled")

    # What surrounds it

    def _watch(self, progress: Progress) -> None:
        """Whom to tell: a callable, or a bar where one is wanted."""
        if callable(progress):
            self._tell = progress
            return
        bar = bar_for(progress, "batch", "prompt")
        if bar is not None:
            self._tell, self._bar_close = bar, bar.close

    def _release(self) -> None:
        """Let go of all timelines: a traceback may keep this object for long."""
        self._bar_close()
        self._running = []
        self._reading = None
        session, self._shared = self._shared, None
        if session is not None:
            self._model._pool.give_back(session)

    def _warn_of_empty(self) -> None:
        """Say so where all of max_tokens was thought away."""
        empty = [index for index, record in enumerate(self._records) if record.is_all_reasoning]
        if empty:
            warnings.warn(
                f"{len(empty)} of {len(self._records)} answers are empty (the first: prompts"
                f"[{empty[0]}]): all of their tokens went to reasoning; raise max_tokens, set "
                "thinking_budget, or make the prompts with enable_thinking=False",
                RuntimeWarning,
                stacklevel=5,
            )
