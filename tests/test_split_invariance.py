"""Oracle: the same tokens in one piece, itself held against the NumPy reference in float64.

The kernels promise that a token's bits do not depend on what shares its call, so with the vector
targets every comparison is of bits. The portable target leaves long products to OpenBLAS, which
promises less: there 1e-5 of the largest logit.
"""

from __future__ import annotations

from typing import Any

import core_models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen35 import ContextLengthError, _core

N = 600  # tokens: over a chunk of 512 and nine pages of 64
BITS = _core.cpu()["isa"] != "c"
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def model() -> _core.Model:
    return core_models.both(seed=1, linear_num_value_heads=6)[0]


@pytest.fixture(scope="module")
def ids() -> NDArray[np.int32]:
    return core_models.tokens(1, N)


@pytest.fixture(scope="module")
def whole(model: _core.Model, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits [N, V] of one piece."""
    return model.session(N).logits_all(ids)


def same(got: NDArray[Any], want: NDArray[Any]) -> None:
    if BITS:
        assert np.array_equal(got, want)
    else:
        assert core_models.relative_error(got, want) <= 1e-5


def test_one_piece_is_right(ids: NDArray[np.int32], whole: NDArray[np.float32]) -> None:
    """The oracle's own oracle. 600 tokens through 4 layers: 1e-4, half the project's bound."""
    reference = core_models.both(seed=1, linear_num_value_heads=6)[1]
    assert core_models.relative_error(whole, reference.logits(ids)) <= 1e-4


def test_last_logits_are_the_last_row(
    model: _core.Model, ids: NDArray[np.int32], whole: NDArray[np.float32]
) -> None:
    for T in (1, 2, 63, 64, 65, 511, 512, 513, N):
        session = model.session(N)
        session.prefill(ids[:T])
        same(session.logits, whole[T - 1])


def test_token_by_token(
    model: _core.Model, ids: NDArray[np.int32], whole: NDArray[np.float32]
) -> None:
    session = model.session(150)
    for t in range(150):
        session.prefill(ids[t : t + 1])
        same(session.logits, whole[t])


@QUICK
@given(cuts=st.sets(st.integers(1, N - 1), max_size=6))
def test_prefill_split_anywhere(
    model: _core.Model, ids: NDArray[np.int32], whole: NDArray[np.float32], cuts: set[int]
) -> None:
    session, start = model.session(N), 0
    for end in [*sorted(cuts), N]:
        session.prefill(ids[start:end])
        same(session.logits, whole[end - 1])
        start = end
    assert session.position == N
    assert np.array_equal(session.ids, ids)


def test_fixed_point_split_anywhere(ids: NDArray[np.int32]) -> None:
    """Weights of bf16 that are not exact: pieces of one token, of few, of many. Errors of 1.3e-4 a
    product, through four layers: 1e-2 of the largest logit.
    """
    model, reference = core_models.both(seed=1, linear_num_value_heads=6, exact=False)
    whole = model.session(N).logits_all(ids)
    assert core_models.relative_error(whole, reference.logits(ids)) <= 1e-2
    session, start = model.session(N), 0
    for size in (1, 1, 2, 3, 4, 5, 15, 16, 17, 64, 129, N):
        end = min(start + size, N)
        session.prefill(ids[start:end])
        same(session.logits, whole[end - 1])
        start = end


@QUICK
@given(cut=st.integers(1, N - 1), wander=st.integers(1, 90), data=st.integers(0, 2**31))
def test_snapshot_and_restore(
    model: _core.Model,
    ids: NDArray[np.int32],
    whole: NDArray[np.float32],
    cut: int,
    wander: int,
    data: int,
) -> None:
    """Keep a point, go elsewhere, come back, go on: nothing of the detour is left. Twice from one
    snapshot.
    """
    session = model.session(N + 90)
    session.prefill(ids[:cut])
    snapshot = session.snapshot()
    for detour in (data, data + 1):
        session.prefill(core_models.tokens(detour, wander))
        session.restore(snapshot)
        assert session.position == cut
        same(session.logits, whole[cut - 1])
        assert np.array_equal(session.ids, ids[:cut])
    session.prefill(ids[cut:])
    same(session.logits, whole[-1])


@QUICK
@given(cut=st.integers(1, N - 1), other=st.integers(2, 90))
def test_fork_goes_its_own_way(
    model: _core.Model, ids: NDArray[np.int32], whole: NDArray[np.float32], cut: int, other: int
) -> None:
    """In turns, so that either would read what the other wrote into a page both still shared."""
    branch, half = core_models.tokens(cut, other), other // 2
    session = model.session(N + 90)
    session.prefill(ids[:cut])
    fork = session.fork()
    fork.prefill(branch[:half])
    session.prefill(ids[cut:])
    fork.prefill(branch[half:])
    same(session.logits, whole[-1])
    alone = model.session(N + 90)
    alone.prefill(np.concatenate((ids[:cut], branch)))
    same(fork.logits, alone.logits)
    assert np.array_equal(fork.ids, alone.ids)


def test_fork_of_fork_and_freed_parents(
    model: _core.Model, ids: NDArray[np.int32], whole: NDArray[np.float32]
) -> None:
    """K/V pages are shared by counting: whoever is left keeps them."""
    session = model.session(N)
    for t in range(0, 200, 10):
        session.prefill(ids[t : t + 10])
        session = session.fork().fork()
    session.prefill(ids[200:])
    same(session.logits, whole[-1])


def test_snapshot_restores_into_another_session(
    model: _core.Model, ids: NDArray[np.int32], whole: NDArray[np.float32]
) -> None:
    first, second = model.session(N), model.session(N)
    first.prefill(ids[:100])
    second.prefill(core_models.tokens(9, 333))
    snapshot = first.snapshot()
    del first
    second.restore(snapshot)
    del snapshot
    second.prefill(ids[100:])
    same(second.logits, whole[-1])


def test_snapshot_of_nothing(
    model: _core.Model, ids: NDArray[np.int32], whole: NDArray[np.float32]
) -> None:
    session = model.session(N)
    start = session.snapshot()
    assert start.position == 0
    session.prefill(ids[:70])
    session.restore(start)
    assert session.position == 0
    assert session.logits is None
    session.prefill(ids[:64])
    same(session.logits, whole[63])


def test_dump_and_undump(
    model: _core.Model, ids: NDArray[np.int32], whole: NDArray[np.float32]
) -> None:
    session = model.session(N)
    session.prefill(ids[:130])
    arrays = session.dump()
    copies = {name: x.copy() for name, x in arrays.items()}
    other = model.session(N)
    other.undump(copies)
    assert other.position == 130
    same(other.logits, whole[129])
    other.prefill(ids[130:])
    same(other.logits, whole[-1])


def test_undump_refuses_damage(model: _core.Model, ids: NDArray[np.int32]) -> None:
    session = model.session(N)
    session.prefill(ids[:70])
    arrays = session.dump()
    for name, x in arrays.items():
        for bad in (x[:-1], np.concatenate((x, x[:1])), x[:0]):
            with pytest.raises(ValueError):
                model.session(N).undump({**arrays, name: bad})
    with pytest.raises(ContextLengthError):
        model.session(69).undump(arrays)
    other = core_models.both(seed=2, num_hidden_layers=3)[0]
    with pytest.raises(ValueError):
        other.session(N).undump(arrays)


def test_undump_survives_flipped_bytes(model: _core.Model, ids: NDArray[np.int32]) -> None:
    """A damaged header is a ValueError, or one that still makes sense is a usable session."""
    session, rng = model.session(300), np.random.default_rng(0)
    session.prefill(ids[:70])
    (name, dump), *more = session.dump().items()
    assert not more
    for _ in range(400):
        bad, at = dump.copy(), rng.integers(0, 60, 2)
        bad[at] = rng.integers(0, 256, 2)
        other = model.session(300)
        try:
            other.undump({name: bad})
        except ValueError:
            assert other.position == 0
        else:
            assert other.position <= 300
            assert other.ids.shape == (other.position,)


def test_generate_continues_the_timeline(model: _core.Model, ids: NDArray[np.int32]) -> None:
    """A greedy stream in one session, against argmax and prefill by hand in another."""
    stream = [token for token, *_ in model.session(200).generate(ids[:50], max_tokens=30)]
    session, by_hand = model.session(200), []
    session.prefill(ids[:50])
    for _ in range(30):
        by_hand.append(int(session.logits.argmax()))
        session.prefill(np.array(by_hand[-1:], np.int32))
    assert stream == by_hand


def test_state_size_does_not_grow(model: _core.Model, ids: NDArray[np.int32]) -> None:
    """Only K/V grows, by whole pages of 64 positions, and a snapshot is no more than its parts."""
    session = model.session(N)
    session.prefill(ids[:64])
    one = session.nbytes
    session.prefill(ids[64:128])
    per_token = model.memory()["kv_per_token"]
    assert session.nbytes - one <= 64 * per_token + 4096


# ---- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[-1], [307], [2**31 - 1], [0, 1, -(2**31)]])
def test_ids_outside_the_vocabulary(model: _core.Model, bad: list[int]) -> None:
    session = model.session(10)
    for call in (session.prefill, session.logits_all, session.score):
        with pytest.raises(ValueError, match=r"307|before"):
            call(np.array(bad, np.int32))
    assert session.position == 0


def test_context_is_kept(
    model: _core.Model, ids: NDArray[np.int32], whole: NDArray[np.float32]
) -> None:
    session = model.session(20)
    session.prefill(ids[:20])
    with pytest.raises(ContextLengthError, match="20"):
        session.prefill(ids[20:21])
    with pytest.raises(ContextLengthError):
        model.session(20).prefill(ids[:21])
    assert session.position == 20
    same(session.logits, whole[19])


def test_nothing_to_append_changes_nothing(
    model: _core.Model, ids: NDArray[np.int32], whole: NDArray[np.float32]
) -> None:
    session = model.session(20)
    session.prefill(ids[:0])
    assert session.logits is None
    session.prefill(ids[:5])
    session.prefill(ids[:0])
    same(session.logits, whole[4])
    assert session.logits_all(ids[:0]).shape == (0, whole.shape[1])


@pytest.mark.parametrize("bad", [[1.5], [[1, 2]], "12", None, [2**40]])
def test_ids_of_another_kind(model: _core.Model, bad: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        model.session(10).prefill(np.array(bad) if isinstance(bad, list) else bad)


@pytest.mark.parametrize("shape", [(3, 4), (2, 5), (5,), (3, 6), (0, 5)])
def test_position_ids_of_another_shape(
    model: _core.Model, ids: NDArray[np.int32], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError):
        model.session(10).prefill(ids[:5], position_ids=np.zeros(shape, np.int32))


def test_score_needs_a_token_before(model: _core.Model, ids: NDArray[np.int32]) -> None:
    with pytest.raises(ValueError, match="before"):
        model.session(10).score(ids[:3])


def test_snapshot_of_another_model(model: _core.Model, ids: NDArray[np.int32]) -> None:
    other = core_models.both(seed=1, linear_num_value_heads=6)[0].session(10)
    other.prefill(ids[:3])
    with pytest.raises(ValueError, match="another model"):
        model.session(10).restore(other.snapshot())
    with pytest.raises(TypeError):
        model.session(10).restore("yesterday")


def test_snapshot_larger_than_the_context(model: _core.Model, ids: NDArray[np.int32]) -> None:
    session = model.session(100)
    session.prefill(ids[:30])
    small = model.session(29)
    with pytest.raises(ContextLengthError):
        small.restore(session.snapshot())
    assert small.position == 0


def test_types_cannot_be_made_by_hand() -> None:
    for kind in (_core.Session, _core.Snapshot, _core.NativeStream):
        with pytest.raises(TypeError):
            kind()
