"""Oracle: golden files, what transformers computed in float32 for models made from a seed
(make_golden.py wrote them).

Through the public API alone, so that a machine without transformers still knows whether the answers
are right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import models
from numpy.typing import NDArray

import qwen35

GOLDEN = Path(__file__).parent / "golden"

NAMES = list(models.CONFIGS)
# The plainest decoding, whatever presets a model comes with.
GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "ignore_eos": True,
}


@pytest.fixture(scope="module", params=NAMES)
def golden(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, NDArray]]:
    """A golden model as a folder, and its file's arrays."""
    with np.load(GOLDEN / f"{request.param}.npz") as arrays:
        return models.write(request.param, tmp_path_factory.mktemp(request.param)), dict(arrays)


@pytest.fixture(scope="module")
def exact(golden: tuple[Path, dict[str, NDArray]]) -> Iterator[qwen35.Model]:
    with qwen35.load(golden[0], dtype="float32") as model:
        yield model


def log_softmax(x: NDArray) -> NDArray[np.float64]:
    x = x.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_files_are_small() -> None:
    assert sorted(p.stem for p in GOLDEN.glob("*.npz")) == sorted(NAMES)
    assert sum(p.stat().st_size for p in GOLDEN.glob("*.npz")) < 300_000


def test_seed_still_makes_the_same_weights() -> None:
    """Literals: if these move, the golden files describe other models."""
    assert models.raw_stream("x", 2).tolist() == [2151374751030940024, 13648862252194908045]
    assert (
        models.ids(NAMES[0], 5).tolist() == np.load(GOLDEN / f"{NAMES[0]}.npz")["ids"][:5].tolist()
    )


def test_logits_float32(golden: tuple[Path, dict[str, NDArray]], exact: qwen35.Model) -> None:
    """2e-4 of the largest logit is the project's bound for float32; the reference in float64 is at
    5e-6.
    """
    want = golden[1]["logits"]
    got = exact.logits(golden[1]["ids"])
    assert got.dtype == np.float32
    assert got.shape == (len(golden[1]["ids"]), want.shape[1])
    assert abs(got[golden[1]["at"]] - want).max() <= 2e-4 * abs(want).max()


def test_last_only_is_the_last_row(
    golden: tuple[Path, dict[str, NDArray]], exact: qwen35.Model
) -> None:
    want = golden[1]["logits"][-1]
    got = exact.logits(golden[1]["ids"], last_only=True)
    assert got.shape == (1, len(want))
    assert abs(got[0] - want).max() <= 2e-4 * abs(want).max()


def test_weights_as_stored(golden: tuple[Path, dict[str, NDArray]]) -> None:
    """bfloat16 weights: mean KL to float32 at most 1e-4 nats, and less than transformers loses in
    bfloat16.
    """
    with qwen35.load(golden[0]) as model:
        got = log_softmax(model.logits(golden[1]["ids"])[golden[1]["at"]])
    want = log_softmax(golden[1]["logits"])
    kl = (np.exp(want) * (want - got)).sum(axis=-1).mean()
    assert kl <= 1e-4
    assert kl < golden[1]["bf16_kl"]


def test_greedy_continuation(golden: tuple[Path, dict[str, NDArray]], exact: qwen35.Model) -> None:
    """The margins between first and second logit are far above float32's error, so the tokens are
    equal.
    """
    want = golden[1]["greedy"].tolist()
    stream = exact.generate(golden[1]["ids"], max_tokens=len(want), **GREEDY)
    assert [token.id for token in stream] == want


def test_score_agrees(golden: tuple[Path, dict[str, NDArray]], exact: qwen35.Model) -> None:
    """score() of the true next token is the log-softmax of the golden row before it. Tolerance:
    that of the logits.
    """
    ids, at = golden[1]["ids"], golden[1]["at"].tolist()
    row, next_row = at.index(62), at.index(63)
    tail = ids[63:65].tolist()
    want = [
        log_softmax(golden[1]["logits"][row])[tail[0]],
        log_softmax(golden[1]["logits"][next_row])[tail[1]],
    ]
    score = exact.score(ids[:63], [tail])[0]
    assert list(score.logprobs) == pytest.approx(want, abs=4e-3)
    assert score.logprob == pytest.approx(sum(want), abs=8e-3)
