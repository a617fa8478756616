"""A stand-in for the native module whose answers are scripted, so that tests can write down what
must come out.

`script(ids)` gives the next token after a timeline; without one it is drawn from the timeline's
hash, so that two sessions agree exactly when their timelines do. Everything else (prefill,
snapshot, restore, cancel, force) follows `_core.pyi`.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Script = Callable[[list[int]], int]
SAMPLING = {"temperature", "top_p", "top_k", "min_p", "seed"}
SAMPLING |= {"presence_penalty", "frequency_penalty", "repetition_penalty"}
CHUNK = 8  # tokens between two looks at the cancel flag


class FakeModel:
    """Stands for `_core.Model`. chunk_s: seconds that CHUNK tokens of a prompt take."""

    def __init__(
        self, vocab_size: int, script: Script | None = None, *, chunk_s: float = 0.0
    ) -> None:
        self.vocab_size, self.script, self.chunk_s = vocab_size, script, chunk_s
        self.threads = 1
        self.feature_shape = None  # no vision tower
        self.appended = 0  # tokens computed by all sessions

    def memory(self) -> dict[str, int]:
        sizes = {"weights": 1000, "owned": 24, "kv_per_token": 16, "state": 64, "scratch": 128}
        return {**sizes, "screen": 0}

    def session(self, context: int) -> FakeSession:
        return FakeSession(self, context)

    def batch(self, size: int) -> FakeBatch:
        return FakeBatch(size)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        rng = np.random.default_rng(zlib.crc32(np.array(ids, dtype=np.int32).tobytes()))
        logits = rng.standard_normal(self.vocab_size).astype(np.float32)
        if self.script is not None:
            logits[self.script(list(ids))] += 20
        return logits


class FakeSession:
    """Stands for `_core.Session`."""

    def __init__(self, model: FakeModel, context: int) -> None:
        self.model, self.context = model, context
        self._ids: list[int] = []
        self._has_logits = False
        self.nbytes = 64

    @property
    def position(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> NDArray[np.int32]:
        return np.array(self._ids, dtype=np.int32)

    @property
    def logits(self) -> NDArray[np.float32] | None:
        return self.model.logits(self._ids) if self._has_logits else None

    @property
    def has_logits(self) -> bool:
        return self._has_logits

    def prefill(
        self, ids: NDArray[np.int32], *, position_ids: Any = None, progress: Any = None
    ) -> None:
        self._append(ids, progress, lambda: False)

    def _append(self, ids: Sequence[int], progress: Any, cancelled: Callable[[], bool]) -> bool:
        """False if it was cancelled before the end."""
        ids = [int(i) for i in ids]
        assert self.position + len(ids) <= self.context, "the caller checks what fits"
        for start in range(0, len(ids), CHUNK):
            if cancelled():
                return False
            time.sleep(self.model.chunk_s)
            chunk = ids[start : start + CHUNK]
            self._ids += chunk
            self.model.appended += len(chunk)
            self._has_logits = start + CHUNK >= len(ids)
            if progress is not None:
                progress(start + len(chunk), len(ids))
        return not cancelled()

    def logits_all(
        self, ids: NDArray[np.int32], *, position_ids: Any = None
    ) -> NDArray[np.float32]:
        rows = []
        for token in ids:
            self._append([token], None, lambda: False)
            rows.append(self.logits)
        return np.array(rows)

    def score(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        assert self._has_logits
        before = [self.logits, *self.logits_all(ids)[:-1]]
        logprobs = [
            x[i] - np.log(np.exp(x.astype(np.float64)).sum())
            for x, i in zip(before, ids, strict=True)
        ]
        return np.array(logprobs, dtype=np.float32), np.array(
            [x.argmax() for x in before], dtype=np.int32
        )

    def snapshot(self) -> SimpleNamespace:
        state = (list(self._ids), self._has_logits)
        return SimpleNamespace(position=self.position, nbytes=64, state=state)

    def restore(self, snapshot: SimpleNamespace) -> None:
        ids, self._has_logits = snapshot.state
        self._ids = list(ids)

    def fork(self) -> FakeSession:
        twin = FakeSession(self.model, self.context)
        twin.restore(self.snapshot())
        return twin

    def dump(self) -> dict[str, NDArray[Any]]:
        return {"ids": self.ids, "meta": np.array([self._has_logits], dtype=np.uint8)}

    def undump(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._ids = arrays["ids"].tolist()
        self._has_logits = bool(arrays["meta"][0])

    def generate(
        self,
        ids: NDArray[np.int32],
        *,
        max_tokens: int = -1,
        min_tokens: int = 0,
        stop_token_ids: Iterable[int] = (),
        logprobs: int = -1,
        logit_bias: Mapping[int, float] | None = None,
        progress: Any = None,
        **sampling: Any,
    ) -> FakeStream:
        unknown = set(sampling) - SAMPLING
        assert not unknown, unknown
        return FakeStream(
            self,
            ids,
            max_tokens,
            min_tokens,
            set(stop_token_ids),
            logprobs,
            logit_bias or {},
            progress,
        )


class FakeStream:
    """Stands for `_core.NativeStream`: greedy."""

    def __init__(
        self,
        session: FakeSession,
        ids: NDArray[np.int32],
        max_tokens: int,
        min_tokens: int,
        stops: set[int],
        logprobs: int,
        bias: Mapping[int, float],
        progress: Any,
    ) -> None:
        self._session, self._prompt, self._progress = session, list(ids), progress
        room = session.context - session.position - len(ids)
        self._left = max(room, 1) if max_tokens < 0 else max_tokens
        self._min, self._stops, self._logprobs, self._bias = min_tokens, stops, logprobs, bias
        self._forced: list[int] = []
        self._pending: int | None = None  # yielded, not yet in the session
        self._started = False
        self._count = 0
        self._cancelled = threading.Event()
        self.finish_reason: str | None = None
        self.timings = {
            "prompt_tokens": 0.0,
            "prefill_s": 0.0,
            "decode_tokens": 0.0,
            "decode_s": 0.0,
        }

    def __iter__(self) -> FakeStream:
        return self

    def __next__(self) -> tuple[int, float | None, list[tuple[int, float]]]:
        if self.finish_reason is not None:
            raise StopIteration
        if not self._started:
            self._started = True
            done = self._session._append(self._prompt, self._progress, self._cancelled.is_set)
            self.timings.update(prompt_tokens=len(self._prompt), prefill_s=0.001)
            if not done:
                self.finish_reason = "cancelled"
        if self._cancelled.is_set():
            self.finish_reason = "cancelled"
        elif self._left <= 0:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            raise StopIteration
        if self._pending is not None:
            self._session._append([self._pending], None, lambda: False)
        return self._draw()

    def _draw(self) -> tuple[int, float | None, list[tuple[int, float]]]:
        logits = self._session.logits
        assert logits is not None, "generate([]) needs logits"
        for token, add in self._bias.items():
            logits[token] += add
        if self._count < self._min:
            logits[list(self._stops)] = -np.inf
        token = self._forced.pop(0) if self._forced else int(logits.argmax())
        self._pending, self._left, self._count = token, self._left - 1, self._count + 1
        self.timings["decode_tokens"] += 1
        self.timings["decode_s"] += 0.001
        if token in self._stops:
            self.finish_reason = "stop"
        if self._logprobs < 0:
            return token, None, []
        logp = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
        best = np.argsort(-logp)[: self._logprobs]
        return token, float(logp[token]), [(int(i), float(logp[i])) for i in best]

    def cancel(self) -> None:
        self._cancelled.set()

    def force(self, ids: Sequence[int]) -> None:
        self._forced = list(ids)


class FakeBatch:
    """Stands for `_core.Batch`: each stream alone, one after the other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.together: list[int] = []  # streams of each step

    def step(self, streams: Sequence[FakeStream]) -> list[Any]:
        assert 0 < len(streams) <= self.size
        self.together.append(len(streams))
        return [next(stream, None) for stream in streams]


def after(prompt_ids: Sequence[int], answer: Sequence[int], then: int) -> Script:
    """A script that says `answer` after exactly this prompt, and `then` everywhere else."""
    start = list(prompt_ids)

    def script(ids: list[int]) -> int:
        said = len(ids) - len(start)
        on_track = said >= 0 and ids == [*start, *answer[:said]]
        return answer[said] if on_track and said < len(answer) else then

    return script


def fake_model(
    folder: Path, *, script: Script | None = None, chunk_s: float = 0.0, **options: Any
) -> Any:
    """A `qwen35.Model` over FakeModel, with tokenizer, template and config of a small checkpoint in
    `folder`.
    """
    from qwen35.loading import open_checkpoint
    from qwen35.model import Model
    from qwen35.tokenizer import Tokenizer

    checkpoint = open_checkpoint(folder)
    rows = checkpoint.config.text.vocab_size
    tokenizer = Tokenizer.from_file(checkpoint.tokenizer_file, embedding_rows=rows)
    core: Any = FakeModel(rows, script, chunk_s=chunk_s)
    return Model(checkpoint, core, tokenizer, **options)
