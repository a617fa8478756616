"""How far a model, quantized mostly, is from a reference, and which one to take for a memory.

    from qwen35 import fidelity
    results = fidelity.measure({"q4_k_m": small, "q8_0": large}, "Qwen3.5-0.8B", text)
    print(fidelity.table(results))
    fidelity.choose(results, 2 * 10**9)

The text is cut into windows of `context` tokens that share nothing; each is read from an empty
session, and the second half of each is scored, as llama.cpp's `perplexity` does: every scored
token has at least half a window before it. What is left of the text after the last whole window
is not used. Window by window the reference and then every model is asked, so the logits of one
window of the reference and of one model are what is held, whatever the text's length.

Models of other sizes than the reference may stand beside it. KL then compares two sets of weights
that were never meant to agree, and perplexity decides: it is comparable because both read the same
tokens, though a model that was tuned for answering pays for it on prose.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .fidelity_models import check_vocabulary, main_type, open_models, text_size
from .fidelity_report import html, plot, table, to_json
from .layer_errors import LayerErrors, layer_errors
from .progress import Progress, bar_for
from .prompt import check_ids

if TYPE_CHECKING:
    from .model import Model

__all__ = [
    "Compared",
    "Fidelities",
    "Fidelity",
    "LayerErrors",
    "choose",
    "compare",
    "layer_errors",
    "measure",
    "plot",
    "table",
    "to_json",
]

PIECE = 1 << 18  # logits that are float64 at a time: a row of the released vocabulary
Source = Any  # what `load` takes, or a Model


@dataclass(frozen=True)
class Fidelity:
    """One model on one text. KL is KL(reference || model) in nats; an `_error` is one standard
    error of the mean, tokens taken as independent.
    """

    name: str
    reference: str  # its name
    type: str  # that most weights of the text model are stored in
    perplexity: float  # exp of the mean negative log-likelihood of the scored tokens
    perplexity_error: float
    kl: float  # mean, nats a token
    kl_error: float
    kl_p95: float  # 95th percentile, nats
    kl_max: float  # nats
    agreement: float  # share of tokens where the reference's likeliest is the model's, 0 to 1
    parameters: int  # of the text model, without drafts and vision
    weights_bytes: int  # of the same
    memory_bytes: int  # weights and one session of `context` tokens: Model.memory()["total"]
    tokens_per_s: float  # prefill with logits after every token, the median of the windows
    threads: int
    context: int  # tokens of a window
    scored: int  # tokens
    same_size: bool  # as many parameters as the reference: KL is meaningful

    @property
    def bits_per_weight(self) -> float:
        """Bits of the text model's weights, scales included."""
        return 8 * self.weights_bytes / self.parameters

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, bits_per_weight too."""
        return {**asdict(self), "bits_per_weight": self.bits_per_weight}


class Fidelities(list[Fidelity]):
    """What `measure` answers with: a list that prints and draws itself as a table."""

    def __str__(self) -> str:
        return table(self)

    def _repr_html_(self) -> str:
        return html(self)


@dataclass(frozen=True)
class Compared:
    """Token by token, float64 [T] each, bool [T] for `agree`."""

    kl: NDArray[np.float64]  # KL(reference || model), nats
    loss: NDArray[np.float64]  # the model's negative log-likelihood of the target, nats
    agree: NDArray[np.bool_]


def measure(
    models: Mapping[str, Source] | Iterable[Source] | Source,
    reference: Source,
    text: str | Sequence[int] | NDArray[np.integer[Any]],
    *,
    context: int = 512,
    tokens: int | None = None,
    special: bool = False,
    threads: int | None = None,
    progress: Progress = None,
) -> Fidelities:
    """Compare models with a reference on a text, in the order given.

    models: loaded ones or what `load` takes; a mapping names them. A model that is the reference
        (the same object or path) is evaluated once for both. Those given as paths are loaded
        without vision, with `threads`, and closed again.
    text: token ids are taken as given. special: spelt-out special tokens such as <|im_end|> become
        their ids, for a text of chats.
    context: tokens of a window; the second half of each is scored. tokens: how many of the text's
        tokens are read at most.
    progress: None draws a bar where somebody watches, False none; or a function of (done, total),
        counting windows of all models.

    Raises ValueError for a text of less than a window, vocabularies that differ, or logits that are
    not finite; what `load` raises for a path.
    """
    _check_count("context", context, 3)
    if tokens is not None:
        _check_count("tokens", tokens, 1)
    with ExitStack() as stack:
        base, named = open_models(
            models, reference, stack, context=context, threads=threads, progress=progress
        )
        ids = _ids(text, base, special=special)
        for name, model in named.items():
            check_vocabulary(name, model, base, text, ids, special=special)
        windows = _windows(ids if tokens is None else ids[:tokens], context)
        tallies = {name: _Tally() for name in named}
        others = [name for name, model in named.items() if model is not base]
        report, total = _reporter(progress, stack), len(windows) * (1 + len(others))
        for number, window in enumerate(windows):
            done = number * (1 + len(others)) + 1
            wanted, seconds = _logits(base, window, base.name)
            report(done, total)
            for name, model in named.items():
                if model is base:
                    tallies[name].add(window, wanted, wanted, seconds)
            for step, name in enumerate(others, 1):
                tallies[name].add(window, wanted, *_logits(named[name], window, name))
                report(done + step, total)
        return Fidelities(
            tallies[name].result(name, model, base, context=context)
            for name, model in named.items()
        )


def compare(
    reference: NDArray[np.floating[Any]], logits: NDArray[np.floating[Any]], targets: NDArray[Any]
) -> Compared:
    """Two models' logits [T, V] after the same tokens, and the ids [T] that came next, in float64.

    KL = sum p (log p - log q), p and q the softmax of the reference and the model.
    """
    if reference.shape != logits.shape or len(targets) != len(logits):
        raise ValueError(
            f"logits {list(reference.shape)} of the reference and {list(logits.shape)} of the "
            f"model, {len(targets)} targets: expected the same T and V"
        )
    rows, count = len(logits), max(1, PIECE // logits.shape[1])
    kl, loss = np.empty(rows), np.empty(rows)
    for begin in range(0, rows, count):
        part = slice(begin, min(begin + count, rows))
        p, q = _log_softmax(reference[part]), _log_softmax(logits[part])
        loss[part] = -q[np.arange(len(q)), targets[part]]
        np.subtract(p, q, out=q)
        q *= np.exp(p, out=p)
        kl[part] = np.maximum(q.sum(axis=1), 0.0)  # below zero it is rounding
    return Compared(kl, loss, reference.argmax(axis=1) == logits.argmax(axis=1))


def choose(results: Iterable[Fidelity], budget_bytes: float) -> Fidelity:
    """The most faithful of those whose `memory_bytes` fit: the lowest KL. Where one that fits has
    another number of parameters than the reference, the lowest perplexity: so it says whether fewer
    parameters at more bits, or more at fewer, are the better use of the memory.

    Raises ValueError when nothing fits. Among equals the smaller.
    """
    known = list(results)
    if not known:
        raise ValueError("choose() needs at least one result")
    fits = [result for result in known if result.memory_bytes <= budget_bytes]
    if not fits:
        least = min(known, key=lambda result: result.memory_bytes)
        raise ValueError(
            f"nothing fits {budget_bytes:,.0f} bytes: the smallest, {least.name}, takes "
            f"{least.memory_bytes:,}"
        )
    if all(result.same_size for result in fits):
        return min(fits, key=lambda result: (result.kl, result.memory_bytes))
    return min(fits, key=lambda result: (result.perplexity, result.memory_bytes))


# The text


def _ids(text: Any, base: Model, *, special: bool) -> NDArray[np.int32]:
    if isinstance(text, str):
        return np.array(base.tokenize(text, special=special), np.int32)
    return check_ids(text, vocab_size=base.config.text.vocab_size, where="text")


def _windows(ids: NDArray[np.int32], context: int) -> list[NDArray[np.int32]]:
    """Whole windows alone."""
    count = len(ids) // context
    if count == 0:
        raise ValueError(
            f"text: {len(ids):,} tokens, and one window takes context={context:,}; expected a "
            "longer text or a smaller context"
        )
    return list(ids[: count * context].reshape(count, context))


def _scored(context: int) -> slice:
    """The positions whose next token is scored; the last one's lies outside the window."""
    return slice(context // 2, context - 1)


def _logits(model: Model, window: NDArray[np.int32], name: str) -> tuple[NDArray[Any], float]:
    """Logits of the scored positions, and the seconds that the whole window took."""
    start = time.perf_counter()
    every = model.logits(window)
    seconds = time.perf_counter() - start
    part = every[_scored(len(window))].copy()  # lets the other half go
    bad = np.argwhere(~np.isfinite(part))
    if len(bad):
        row, column = map(int, bad[0])
        raise ValueError(
            f"{name}: the logit of token {column} after {len(window) // 2 + row + 1} tokens is "
            f"{part[row, column]}: expected finite numbers; load it with check=True to look at its "
            "weights"
        )
    return part, max(seconds, 1e-9)


# The numbers


class _Tally:
    """What the windows of one model came to: numbers a token, not logits."""

    def __init__(self) -> None:
        self._parts: list[Compared] = []
        self._rates: list[float] = []

    def add(
        self, window: NDArray[np.int32], wanted: NDArray[Any], got: NDArray[Any], seconds: float
    ) -> None:
        targets = window[len(window) // 2 + 1 :]
        self._parts.append(compare(wanted, got, targets))
        self._rates.append(len(window) / seconds)

    def result(self, name: str, model: Model, base: Model, *, context: int) -> Fidelity:
        kl = np.concatenate([part.kl for part in self._parts])
        loss = np.concatenate([part.loss for part in self._parts])
        agree = np.concatenate([part.agree for part in self._parts])
        parameters, weights = text_size(model)
        perplexity = math.exp(loss.mean())
        return Fidelity(
            name=name,
            reference=base.name,
            type=main_type(model),
            perplexity=perplexity,
            perplexity_error=perplexity * _standard_error(loss),
            kl=float(kl.mean()),
            kl_error=_standard_error(kl),
            kl_p95=float(np.percentile(kl, 95)),
            kl_max=float(kl.max()),
            agreement=float(agree.mean()),
            parameters=parameters,
            weights_bytes=weights,
            memory_bytes=model.memory(context=context)["total"],
            tokens_per_s=statistics.median(self._rates),
            threads=model.threads,
            context=context,
            scored=len(kl),
            same_size=parameters == text_size(base)[0],
        )


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _log_softmax(rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    out = rows.astype(np.float64)
    out -= out.max(axis=1, keepdims=True)
    out -= np.log(np.exp(out).sum(axis=1, keepdims=True))
    return out


def _reporter(progress: Progress, stack: ExitStack) -> Callable[[int, int], object]:
    if callable(progress):
        return progress
    bar = bar_for(progress, "fidelity", "window")
    if bar is None:
        return lambda done, total: None
    stack.callback(bar.close)
    return bar


def _check_count(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r}: expected an integer")
    if value < low:
        raise ValueError(f"{name}={value}: expected at least {low}")
