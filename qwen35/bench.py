"""Timing a loaded model, for `qwen35 bench` and benchmarks/: seconds of prefill, decoding, batches
and images, what a token costs in bytes and operations, and where its time goes.

Random tokens; greedy where something is chosen. Nothing is printed, nothing warmed up.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import EMBEDDING

if TYPE_CHECKING:
    from .model import Model

PARTS = {".linear_attn.": "DeltaNet", ".self_attn.": "attention", ".mlp.": "MLP"}
HEAD = "head"


def random_ids(model: Model, tokens: int, seed: int = 0) -> NDArray[np.int32]:
    """Ids of plain tokens, [tokens]."""
    top = min(model.config.text.vocab_size, model.tokenizer.vocab_size)
    return np.random.default_rng(seed).integers(0, top, tokens).astype(np.int32)


class Timeline:
    """A session that holds `depth` random tokens whenever something is timed on it; `room`: tokens
    that may come after them.
    """

    def __init__(self, model: Model, depth: int, room: int) -> None:
        self.model, self.depth = model, depth
        self._core = model._core_session(depth + room)
        self._start: Any = None
        if depth:
            self._core.prefill(random_ids(model, depth, seed=1))
            self._start = self._core.snapshot()

    def deepen(self, depth: int) -> None:
        """Hold that many tokens from now on, out of `room`."""
        self._rewind()
        if depth > self.depth:
            self._core.prefill(random_ids(self.model, depth - self.depth, seed=depth))
            self._start, self.depth = self._core.snapshot(), depth

    def prefill_s(self, tokens: int, seed: int = 0) -> float:
        """Seconds to read so many at once, the logits after the last included."""
        ids = random_ids(self.model, tokens, seed)
        self._rewind()
        start = time.perf_counter()
        self._core.prefill(ids)
        _ = self._core.logits
        return time.perf_counter() - start

    def decode_s(self, tokens: int, seed: int = 0) -> float:
        """Seconds to read so many one by one, each the likeliest after those before it."""
        ids = random_ids(self.model, 1, seed)
        self._rewind()
        native = self._core.generate(ids, max_tokens=tokens + 1)
        next(native)  # weights lie where decoding wants them from then on
        start = time.perf_counter()
        for _ in native:
            pass
        return time.perf_counter() - start

    def parts_s(self, tokens: int, seed: int = 0) -> dict[str, float]:
        """Seconds by part of one forward call of so many tokens (256 at most). A part's time runs
        from its first product to the next part's. Of several tokens a prefill asks the last layer
        and the head for the last one alone, this call for all: both count as head then.
        """
        last = f".layers.{len(self.model.config.text.layer_types) - 1}."
        seen: list[tuple[float, str]] = []
        ids = random_ids(self.model, tokens, seed)
        self._rewind()

        def note(name: str, x: Any) -> None:
            part = HEAD if tokens > 1 and last in name else part_of(name)
            seen.append((time.perf_counter(), part))

        self._core.observe(ids, note)
        seen.append((time.perf_counter(), ""))
        found = dict.fromkeys([*PARTS.values(), HEAD], 0.0)
        for (begin, part), (end, _) in zip(seen, seen[1:], strict=False):
            found[part] += end - begin
        return found

    def _rewind(self) -> None:
        if self._start is not None:
            self._core.restore(self._start)
        elif self._core.position:
            self._core = self.model._core_session(self._core.context)


def part_of(name: str) -> str:
    """The part of the model that a matrix belongs to."""
    return next((part for key, part in PARTS.items() if key in name), HEAD)


def batch_s(
    model: Model, size: int, *, prompt: int, steps: int, seed: int = 0
) -> tuple[float, float]:
    """Seconds in which `size` sequences read prompts that share nothing, together, and in which
    they say `steps` tokens each: what `generate_batch` does.
    """
    core = model._native()
    streams = [
        core.session(prompt + steps + 2).generate(random_ids(model, prompt, seed * size + i))
        for i in range(size)
    ]
    batch, reading = core.batch(size), list(streams)
    start = time.perf_counter()
    while reading:  # those that have read all of their prompt wait for the others
        said = batch.step(reading)
        reading = [s for s, token in zip(reading, said, strict=True) if token is None]
    middle = time.perf_counter()
    for _ in range(steps):
        batch.step(streams)
    return middle - start, time.perf_counter() - middle


def image_s(model: Model, side: int, seed: int = 0) -> float:
    """Seconds of `embed_image` on a new random image, preprocessing included."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    start = time.perf_counter()
    model.embed_image(pixels)
    return time.perf_counter() - start


def costs(model: Model) -> dict[str, int]:
    """Of one decoded token: bytes of weights and state that are read, `kv_per_token` more for each
    token before it; operations of the layers' and of the head's matrices, a multiply-add being two.
    """
    from .memory_plan import make_plan

    how: dict[str, Any] = {"threads": model.threads, "kv_dtype": model.kv_dtype}
    plan = make_plan(model._checkpoint, context=1, dtype=model.dtype, vision=False, **how)
    tensors, tied = model._checkpoint.tensors, model.config.text.tie_word_embeddings
    head = EMBEDDING if tied else "lm_head.weight"
    spans = {name: tensors.span(name) for name in tensors if ".visual." not in name}
    sizes = {n: math.prod(s.shape) for n, s in spans.items() if len(s.shape) == 2}
    layers = sum(n for name, n in sizes.items() if ".layers." in name and "mtp." not in name)
    return {
        "weight_bytes": plan.weights - (0 if tied else spans[EMBEDDING].nbytes),
        "state_bytes": plan.state,
        "kv_per_token": plan.kv_per_token,
        "layer_ops": 2 * layers,
        "head_ops": 2 * sizes[head],
    }


def decode_bytes(cost: dict[str, int], depth: int) -> int:
    """Bytes that a token at this depth reads."""
    return cost["weight_bytes"] + cost["state_bytes"] + cost["kv_per_token"] * depth
