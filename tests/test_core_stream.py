"""Native token streams and the sampler. Oracle: NumPy (softmax, sorting, vLLM's order of cuts), and
plain prefill calls.
"""

from __future__ import annotations

import threading
from collections import Counter

import core_models
import numpy as np
import pytest

from qwen35 import _core

IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)


@pytest.fixture(scope="module")
def model() -> _core.Model:
    return core_models.both(seed=5)[0]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


def distribution(
    logits: np.ndarray, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0
) -> np.ndarray:
    """vLLM's cuts on the sorted distribution, in float64."""
    p = softmax(logits.astype(np.float64) / temperature)
    order = np.argsort(-p, kind="stable")
    keep = np.zeros(len(p), bool)
    keep[order[: top_k or len(p)]] = True
    keep &= p >= min_p * p.max()
    q = np.where(np.isin(np.arange(len(p)), order[: top_k or len(p)]), p, 0)
    q /= q.sum()
    before = np.cumsum(q[order]) - q[order]  # mass of what is likelier
    keep[order[before >= top_p]] = False
    return np.where(keep, p, 0) / np.where(keep, p, 0).sum()


@pytest.mark.parametrize(
    "cuts",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 20, "top_p": 0.5, "temperature": 1.5},
        {"top_k": 7, "min_p": 0.05, "top_p": 0.9},
    ],
)
def test_draws_follow_the_cut_distribution(cuts: dict[str, float]) -> None:
    logits = np.random.default_rng(1).normal(size=101).astype(np.float32) * 2
    expected = distribution(logits, **cuts)
    coins = (np.arange(4000) + 0.5) / 4000
    none = np.zeros(0, np.int32)
    drawn = Counter(_core.sample(logits, coin=c, history=none, n_prompt=0, **cuts) for c in coins)
    assert all(expected[i] > 0 for i in drawn)
    share = np.bincount(list(drawn), weights=list(drawn.values()), minlength=101) / 4000
    # evenly spaced coins hit each token its share of times, give or take one coin
    np.testing.assert_allclose(share, expected, atol=1.5 / 4000)


@pytest.mark.parametrize("kind", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_have_vllms_meaning(kind: str) -> None:
    logits = np.array([2.0, 1.9, -1.0, 0.5], np.float32)
    history = np.array([2, 0, 0, 3, 0], np.int32)  # prompt [2, 0], answer [0, 3, 0]
    value = 1.7
    expected = logits.astype(np.float64).copy()
    if kind == "repetition_penalty":  # prompt and answer
        for i in {0, 2, 3}:
            expected[i] = expected[i] / value if expected[i] > 0 else expected[i] * value
    else:  # the answer alone: token 0 twice, token 3 once
        for i, count in {0: 2, 3: 1}.items():
            expected[i] -= value * (count if kind == "frequency_penalty" else 1)
    coins = (np.arange(5000) + 0.5) / 5000
    drawn = [
        _core.sample(logits, coin=c, history=history, n_prompt=2, **{kind: value}) for c in coins
    ]
    share = np.bincount(drawn, minlength=4) / 5000
    np.testing.assert_allclose(share, softmax(expected), atol=1.5 / 5000)


def test_greedy_stream_equals_argmax_of_prefill(model: _core.Model) -> None:
    session, ids = model.session(200), list(IDS)
    for _ in range(20):
        plain = model.session(200)
        plain.prefill(np.array(ids, np.int32))
        ids.append(int(np.argmax(plain.logits)))
    stream = session.generate(IDS, max_tokens=20)
    assert [t[0] for t in stream] == ids[len(IDS) :]
    assert stream.finish_reason == "length"
    assert session.position == len(ids) - 1  # the last token is yielded, not fed


def test_logprobs_are_of_the_plain_distribution(model: _core.Model) -> None:
    session = model.session(200)
    plain = model.session(200)
    plain.prefill(IDS)
    ((token, logprob, top),) = session.generate(
        IDS, max_tokens=1, temperature=2.0, seed=4, logprobs=3
    )
    expected = np.log(softmax(plain.logits))
    assert logprob == pytest.approx(expected[token], abs=1e-5)  # f32 exponentials
    order = np.argsort(-expected, kind="stable")[:3]
    assert [i for i, _ in top] == order.tolist()
    np.testing.assert_allclose([p for _, p in top], expected[order], atol=1e-5)


def test_seed_decides(model: _core.Model) -> None:
    def draw(seed: int) -> list[int]:
        stream = model.session(200).generate(IDS, max_tokens=12, temperature=1.5, seed=seed)
        return [t[0] for t in stream]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_stop_token_ends_and_min_tokens_delays(model: _core.Model) -> None:
    first = next(model.session(200).generate(IDS))[0]
    stream = model.session(200).generate(IDS, stop_token_ids=[first])
    assert [t[0] for t in stream] == [first]
    assert stream.finish_reason == "stop"
    late = [
        t[0]
        for t in model.session(200).generate(
            IDS, stop_token_ids=[first], min_tokens=3, max_tokens=9
        )
    ]
    assert first not in late[:3]


def test_bias_forces_and_bans(model: _core.Model) -> None:
    chosen = next(model.session(200).generate(IDS, logit_bias={17: 1e9}))[0]
    assert chosen == 17
    nothing = {i: -np.inf for i in range(_vocabulary(model))}
    with pytest.raises(ValueError, match="no token is left to draw at step 0"):
        next(model.session(200).generate(IDS, logit_bias=nothing))


def _vocabulary(model: _core.Model) -> int:
    session = model.session(4)
    session.prefill(IDS[:1])
    return len(session.logits)


def test_forced_tokens_come_next_and_are_in_the_timeline(model: _core.Model) -> None:
    session = model.session(200)
    stream = session.generate(IDS, max_tokens=5)
    first = next(stream)[0]
    stream.force([11, 12])
    assert [next(stream)[0], next(stream)[0]] == [11, 12]
    fourth = next(stream)[0]
    plain = model.session(200)
    plain.prefill(np.array([*IDS, first, 11, 12], np.int32))
    assert fourth == int(np.argmax(plain.logits))


def test_stream_fills_the_context_and_ends(model: _core.Model) -> None:
    session = model.session(len(IDS) + 3)
    stream = session.generate(IDS)
    assert len(list(stream)) == 4  # three fit, the fourth is drawn and cannot be fed
    assert stream.finish_reason == "length"


def test_cancel_from_another_thread(model: _core.Model) -> None:
    stream = model.session(100_000).generate(IDS)
    next(stream)
    threading.Timer(0.05, stream.cancel).start()
    for _ in stream:
        pass
    assert stream.finish_reason == "cancelled"


def test_progress_that_raises_ends_the_prefill_at_a_whole_chunk(model: _core.Model) -> None:
    class Enough(Exception):
        pass

    def progress(done: int, total: int) -> None:
        assert total == 1300
        if done >= 1024:
            raise Enough

    session = model.session(2000)
    ids = np.random.default_rng(0).integers(0, 100, 1300).astype(np.int32)
    with pytest.raises(Enough):
        session.prefill(ids, progress=progress)
    assert session.position == 1024
    session.prefill(ids[1024:])
    whole = model.session(2000)
    whole.prefill(ids)
    assert np.array_equal(session.logits, whole.logits)  # same kernels, same order: same bits


@pytest.mark.parametrize(
    "given",
    [
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [10**6]},
        {"logit_bias": {10**6: 1.0}},
        {"position_ids": np.zeros((3, 2), np.int32)},
    ],
)
def test_bad_arguments_name_themselves(model: _core.Model, given: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        next(model.session(100).generate(IDS, **given))


def test_session_busy_in_another_thread(model: _core.Model) -> None:
    from qwen35 import BusyError

    session, inside, go_on = model.session(2000), threading.Event(), threading.Event()

    def progress(done: int, total: int) -> None:
        inside.set()
        go_on.wait(10)

    worker = threading.Thread(
        target=lambda: session.prefill(np.ones(600, np.int32), progress=progress)
    )
    worker.start()
    assert inside.wait(10)
    with pytest.raises(BusyError, match="another thread"):
        session.prefill(IDS)
    go_on.set()
    worker.join()


@pytest.mark.parametrize("bad", [-1, 2**31 - 1])
def test_rotary_positions_are_checked(model: _core.Model, bad: int) -> None:
    positions = np.zeros((3, len(IDS)), np.int32)
    positions[1, 2] = bad
    with pytest.raises(ValueError, match=r"position_ids\[1, 2\] is"):
        model.session(100).prefill(IDS, position_ids=positions)
