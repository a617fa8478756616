"""Oracle: products in float64 for the bounds; for what is drawn the head read whole: a screen is an
order of work, and every token must be the one that all logits give.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import core_models
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import qwen35
from qwen35 import _core

Array = NDArray[Any]
TARGETS = _core.kernels()
TOP = 64  # the largest k of a screen


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return request.param


def stored(w: Array, dtype: str) -> tuple[Array, Array]:
    """A head as the core takes it, and its numbers in float64."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    narrow = w.astype(kind)
    return narrow.view(np.uint16) if dtype == "bfloat16" else narrow, narrow.astype(np.float64)


def heads(V: int, D: int) -> dict[str, tuple[Array, Array]]:
    """(head, hidden state) by what is hard about them; float64."""
    rng = np.random.default_rng(V)
    w, h = rng.standard_normal((V, D)), rng.standard_normal(D)
    spiky = h * np.where(rng.random(D) < 0.02, 300.0, 1.0)
    outliers = w * np.where(rng.random((V, D)) < 0.01, 40.0, 1.0)
    flat = w.copy()
    flat[::3] = 0
    even = np.sign(h)
    return {
        "random": (w, h),
        "small": (w * 1e-9, h * 1e-9),  # scales are f16 subnormals, and less
        "large": (w * 1e7, h * 1e12),  # scales are beyond f16
        "spiky": (outliers, spiky),
        "zeros": (flat, h),
        "aligned": (along_what_is_left(w, even), even),
        "no state": (w, np.zeros(D)),
    }


def along_what_is_left(w: Array, h: Array) -> Array:
    """Rows nearly all of whose rounding errors point along h: every number stands just below half a
    step where h is positive, and just above where it is negative.
    """
    rows = w.reshape(len(w), -1, 32).copy()
    step = (np.abs(rows).max(-1, keepdims=True) / 32).astype(np.float16).astype(np.float64)
    towards = np.sign(h).reshape(1, -1, 32)
    rows = (np.clip(np.floor(rows / step), -31, 29) + 0.5 - 0.02 * towards) * step
    rows[..., 0] = -32 * step[..., 0]  # fixes the scale
    return rows.reshape(w.shape)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("what", heads(33, 32))
def test_no_logit_is_beyond_its_reach(target: str, what: str, dtype: str) -> None:
    V, D = 333, 1184  # neither a multiple of a panel nor of what is converted at once
    if dtype == "float16" and what in ("large", "small"):
        pytest.skip("float16 does not hold it")
    w, h = heads(V, D)[what]
    head, exact = stored(w, dtype)
    state = h.astype(np.float32)
    found = _core.run_screen(target, head, state)
    wide = state.astype(np.float64)
    reach = found["reach"].astype(np.float64) * np.linalg.norm(wide) * (1 + 2e-6) + 1e-20
    products, approx = exact @ wide, found["approx"].astype(np.float64)
    assert np.isfinite(approx).all()
    assert (np.abs(found["logits"] - approx) <= reach).all()  # what the head computes
    assert (np.abs(products - approx) <= reach).all()  # and what it stands for
    if what == "random":  # and no wider than six bits are coarse
        assert np.median(found["reach"] / np.linalg.norm(exact, axis=1)) < 0.025
    if what == "aligned":  # the bound is nearly met: errors are not taken to cancel
        share = np.abs(products - approx) / reach
        assert np.median(share) > (0.55 if dtype == "bfloat16" else 0.9)  # that rounds them away


@pytest.mark.parametrize("k", [1, 21, TOP + 1])
def test_rows_found_hold_the_largest_and_have_the_bits_of_the_head(target: str, k: int) -> None:
    V, D = 4111, 256
    rng = np.random.default_rng(k)
    w = rng.standard_normal((V, D)) * rng.uniform(0.5, 2, (V, 1))
    head, _ = stored(w, "bfloat16")
    h = rng.standard_normal(D).astype(np.float32)
    h += 4 * w[17].astype(np.float32)  # as if it were sure
    always = np.array([3, 4110, 3, 17], np.int32)
    for named in (always[:0], always):
        found = _core.run_screen(target, head, h, k=k, always=named)
        rows, logits = found["rows"], found["logits"]
        assert 0 < len(rows) <= V // 16 and (np.diff(rows) > 0).all()
        assert np.array_equal(found["chosen"], logits[rows])
        assert set(named.tolist()) <= set(rows.tolist())
        others = np.setdiff1d(np.arange(V), named)
        largest = others[np.argsort(-logits[others], kind="stable")[:k]]
        assert set(largest.tolist()) <= set(rows.tolist())


def test_a_head_that_cannot_be_told_apart_is_left_alone(target: str) -> None:
    """All rows alike, not finite, or a state that is not."""
    w = np.ones((320, 64), np.float32)
    h = np.ones(64, np.float32)
    assert len(_core.run_screen(target, w, h)["rows"]) == 0
    rng = np.random.default_rng(0)
    w = rng.standard_normal((320, 64)).astype(np.float32)
    h = w[5] * 10
    assert 5 in _core.run_screen(target, w, h)["rows"]
    for row, column, number in ((7, 3, np.nan), (9, 4, np.inf), (11, 5, 1e30)):
        spoilt = w.copy()
        spoilt[row, column] = number
        assert len(_core.run_screen(target, spoilt, h)["rows"]) == 0
    for number in (np.nan, np.inf, 1e30):
        spoilt = h.copy()
        spoilt[0] = number
        assert len(_core.run_screen(target, w, spoilt)["rows"]) == 0


# ---- draws ----


def pair(**text: Any) -> tuple[_core.Model, _core.Model]:
    """One model without and with a screen."""
    fields = core_models.config(hidden_size=64, vocab_size=4001, **text)
    tensors = core_models.checkpoints.make_tensors(fields, seed=5, mtp=False)
    name = next(n for n in tensors if n.endswith("embed_tokens.weight"))
    tensors[name] = (3 * tensors[name].astype(np.float32)).astype(tensors[name].dtype)
    bits = {n: x.view(np.uint16) for n, x in tensors.items()}
    geometry = core_models.geometry(fields)
    return tuple(_core.Model(geometry, bits, threads=2, screen=s) for s in (False, True))


WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.95, "presence_penalty": 1.5},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 5, "min_p": 0.05, "repetition_penalty": 1.3},
    {"temperature": 100.0, "top_k": 64},
    {"temperature": 0.9, "top_k": 1},
    {"repetition_penalty": 0.7, "frequency_penalty": -0.5},
    {"temperature": 1.0, "top_k": 10, "logit_bias": {7: 30.0, 11: -90.0, 4000: 29.0}},
    {"temperature": 1.0, "top_k": 3, "logit_bias": {i: -100.0 for i in range(0, 4001, 40)}},
    {"temperature": 1.0, "top_k": 8, "min_tokens": 6, "stop_token_ids": list(range(0, 4001, 25))},
]


@pytest.fixture(scope="module")
def models() -> tuple[_core.Model, _core.Model]:
    return pair()


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_tokens_are_those_of_all_logits(models: tuple[_core.Model, _core.Model], way: int) -> None:
    plain, screened = models
    before = screened.screened
    for seed in range(12):
        ids = core_models.tokens(seed, 30 + seed, 4001)
        said = []
        for model in models:
            stream = model.session(200).generate(ids, max_tokens=40, seed=seed, **WAYS[way])
            said.append((list(stream), stream.finish_reason))
        assert said[0] == said[1]
    chosen, given = (now - then for now, then in zip(screened.screened, before, strict=True))
    assert chosen > 0, (chosen, given)  # the test is of what it says
    assert plain.screened == (0, 0) and plain.memory()["screen"] == 0


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_tokens_of_a_batch_are_those_of_all_logits(
    models: tuple[_core.Model, _core.Model], way: int
) -> None:
    """Beside a neighbour whose logits are wanted, and one that draws from all."""
    said = []
    for model in models:
        batch, answers = model.batch(5), [[] for _ in range(5)]
        others: list[dict[str, Any]] = [{"logprobs": 2}, {"temperature": 1.0}]
        streams = [
            model.session(200).generate(
                core_models.tokens(i, 20 + 9 * i, 4001), max_tokens=30 + i, seed=i, **own
            )
            for i, own in enumerate([WAYS[way]] * 3 + others)
        ]
        while any(stream.finish_reason is None for stream in streams):
            for answer, token in zip(answers, batch.step(streams), strict=True):
                answer.append(token)
        said.append(answers)
    assert said[0] == said[1]


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_tokens_of_few_logits_are_those_of_the_sampler(
    models: tuple[_core.Model, _core.Model], way: int
) -> None:
    """Without a screen, too, the sampler sees the largest logits alone: `_core.sample` sees all.
    Bias and bans are not among its arguments: they are laid upon the logits here.
    """
    plain, fields = models[0], dict(WAYS[way])
    bias, stops = fields.pop("logit_bias", {}), fields.pop("stop_token_ids", [])
    early = fields.pop("min_tokens", 0)
    fields.setdefault("temperature", 0.0)
    for seed in range(4):
        ids = core_models.tokens(seed, 25, 4001)
        shadow = plain.session(100)
        shadow.prefill(ids)
        stream = plain.session(100).generate(ids, max_tokens=20, seed=seed, **WAYS[way])
        for step, (token, _, _) in enumerate(stream):
            logits = shadow.logits
            history = shadow.ids
            for id, add in bias.items():
                logits[id] += np.float32(add)
            if step < early:
                logits[stops] = -np.inf
            coin = coin_of(seed, step)
            want = _core.sample(logits, coin=coin, history=history, n_prompt=25, **fields)
            assert token == want
            shadow.prefill(np.array([token], np.int32))


def coin_of(seed: int, step: int) -> float:
    """SplitMix64 of seed and step (sample.c names the paper), 53 bits of it."""
    mask = 2**64 - 1
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def test_what_cannot_be_screened_goes_by_the_head() -> None:
    plain, screened = pair()
    ids = core_models.tokens(1, 40, 4001)
    for way in ({"temperature": 1.0}, {"temperature": 1.0, "top_k": 65}, {"logprobs": 1}):
        one, two = (
            list(m.session(90).generate(ids, max_tokens=20, seed=3, **way))
            for m in (plain, screened)
        )
        assert one == two
    assert screened.screened == (0, 0)
    session = screened.session(90)
    session.prefill(ids)
    want = session.logits  # they are there: nothing is left to save
    (token,) = session.generate(ids[:0], max_tokens=1)
    assert token[0] == int(want.argmax()) and screened.screened == (0, 0)


def test_a_head_without_a_winner_goes_by_the_head() -> None:
    """Two halves that are alike: twice as many rows as a screen looks at are equal to the bit."""
    fields = core_models.config(hidden_size=64, vocab_size=640)
    tensors = core_models.checkpoints.make_tensors(fields, seed=5, mtp=False)
    name = next(n for n in tensors if n.endswith("embed_tokens.weight"))
    tensors[name][:] = np.tile(tensors[name][:8], (80, 1))
    bits = {n: x.view(np.uint16) for n, x in tensors.items()}
    geometry = core_models.geometry(fields)
    ids = core_models.tokens(0, 20, 640)
    said = []
    for screen in (False, True):
        model = _core.Model(geometry, bits, screen=screen)
        said.append([token for token, _, _ in model.session(90).generate(ids, max_tokens=40)])
    assert said[0] == said[1] and max(said[0]) < 8  # the first of those that tie
    assert model.screened[0] == 0 and model.screened[1] > 0


def test_the_trained_model_says_the_same_with_and_without() -> None:
    with qwen35.load("tiny", screen=False) as plain, qwen35.load("tiny", screen=True) as screened:
        for seed in range(6):
            fields: dict[str, Any] = {"max_tokens": 60, "seed": seed}
            for own in ({"temperature": 0}, {}):  # {}: the checkpoint's own
                texts = [
                    m.chat("Who are you?", **fields, **own).result().text for m in (plain, screened)
                ]
                assert texts[0] == texts[1]
        chosen, given = screened._native().screened
        assert chosen > 150 and chosen > 4 * given  # after the first 16
        assert screened.memory()["screen"] > 0 == plain.memory()["screen"]


def test_threads_make_the_copy_together() -> None:
    plain, screened = pair()

    def say(model: _core.Model, seed: int) -> list[Any]:
        ids = core_models.tokens(seed, 20, 4001)
        return list(model.session(200).generate(ids, max_tokens=60, temperature=0.9, top_k=9))

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda seed: say(screened, seed), range(8)))
    assert got == [say(plain, seed) for seed in range(8)]
    assert screened.screened[0] > 0
