"""Oracle: the NumPy reference in float64 for logits; for bits, the same stream alone.

Alone and together must agree in every bit of logits, recurrent state and K/V on the vector targets,
which is asked of each that this machine has. The portable target leaves long products to OpenBLAS:
there 1e-5 of the largest logit, and what is drawn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import core_models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vision import core_of, noise, seeing

import qwen35
from qwen35 import BusyError, ContextLengthError, _core

BITS = _core.cpu()["isa"] != "c"
CHUNK = 256  # rows of one forward call
LENGTHS = [1, 7, 300, 64, 65, 33, 2, 500]
WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "top_k": 20, "seed": 3},
    {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 1.0, "seed": 4, "logprobs": 2},
    {"repetition_penalty": 1.3, "logit_bias": {5: 3.0}, "min_tokens": 4, "stop_token_ids": [5]},
]


@pytest.fixture(scope="module")
def model() -> _core.Model:
    return core_models.both(seed=1, linear_num_value_heads=6)[0]


def drain(batch: Any, streams: list[Any], said: list[list[Any]]) -> None:
    """Step until all streams have ended; what they say goes to `said`."""
    while any(stream.finish_reason is None for stream in streams):
        for tokens, token in zip(said, batch.step(streams), strict=True):
            if token is not None:
                tokens.append(token)


def same(one: _core.Session, other: _core.Session) -> None:
    """Two sessions at one point: bits, and where OpenBLAS was at work 1e-5 of the logits."""
    assert np.array_equal(one.ids, other.ids)
    if BITS:
        assert np.array_equal(one.logits, other.logits)
        assert np.array_equal(one.dump()["timeline"], other.dump()["timeline"])
    else:
        assert core_models.relative_error(one.logits, other.logits) <= 1e-5


# ---- against the reference -----------------------------------------------------------------------


@pytest.mark.parametrize("layers", [4, 3], ids=["attention last", "deltanet last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_of_three_timelines(layers: int, dtype: str) -> None:
    """Spans of 1, 5 and 70 tokens in one call, then of 9, 1 and 300. 1e-4 as for one piece in
    test_split_invariance: half the project's bound.
    """
    model, reference = core_models.both(seed=7, dtype=dtype, num_hidden_layers=layers)
    pieces = [(1, 9), (5, 1), (70, 300)]
    ids = [core_models.tokens(seed, sum(cuts)) for seed, cuts in enumerate(pieces)]
    sessions, batch = [model.session(400) for _ in pieces], model.batch(3)
    ends = [0, 0, 0]
    for turn in range(2):
        starts, ends = ends, [end + cuts[turn] for end, cuts in zip(ends, pieces, strict=True)]
        streams = [
            session.generate(whole[start:end], max_tokens=0)
            for session, whole, start, end in zip(sessions, ids, starts, ends, strict=True)
        ]
        drain(batch, streams, [[], [], []])
        for session, whole, end in zip(sessions, ids, ends, strict=True):
            want = reference.logits(whole[:end])[-1]
            assert core_models.relative_error(session.logits, want) <= 1e-4


# ---- against the same stream alone ---------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_bits_do_not_depend_on_neighbours(model: _core.Model, n: int) -> None:
    batch, said = model.batch(n), [[] for _ in range(n)]
    alone = [model.session(600) for _ in range(n)]
    together = [model.session(600) for _ in range(n)]
    want, streams = [], []
    for i in range(n):
        ids, way = core_models.tokens(i, LENGTHS[i]), WAYS[i % len(WAYS)]
        want.append(list(alone[i].generate(ids, max_tokens=9 + i, **way)))
        streams.append(together[i].generate(ids, max_tokens=9 + i, **way))
    drain(batch, streams, said)
    assert [[id for id, *_ in tokens] for tokens in said] == [
        [id for id, *_ in tokens] for tokens in want
    ]
    if BITS:
        assert said == want
    for one, other in zip(together, alone, strict=True):
        same(one, other)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_joining_and_leaving_at_any_step(model: _core.Model, data: st.DataObject) -> None:
    """Any of the streams in any step, some of them read alone in between."""
    n = 5
    ids = [core_models.tokens(i, data.draw(st.integers(1, 90))) for i in range(n)]
    alone, mixed = ([model.session(200) for _ in range(n)] for _ in range(2))
    want = [
        [id for id, *_ in session.generate(one, max_tokens=8, temperature=0.7, seed=i)]
        for i, (session, one) in enumerate(zip(alone, ids, strict=True))
    ]
    streams = [
        session.generate(one, max_tokens=8, temperature=0.7, seed=i)
        for i, (session, one) in enumerate(zip(mixed, ids, strict=True))
    ]
    batch, said = model.batch(n), [[] for _ in range(n)]
    while any(stream.finish_reason is None for stream in streams):
        chosen = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n)) or range(n)
        for i, token in zip(chosen, batch.step([streams[i] for i in chosen]), strict=True):
            said[i] += [] if token is None else [token[0]]
        i = data.draw(st.integers(-2, n - 1))
        token = next(streams[i], None) if i >= 0 else None
        said[i] += [] if token is None else [token[0]]
    assert said == want
    for one, other in zip(mixed, alone, strict=True):
        same(one, other)


def test_a_step_reads_a_token_of_each_and_a_chunk_of_all(model: _core.Model) -> None:
    sessions = [model.session(600) for _ in range(4)]
    lengths = (400, 1, 300, 2)
    streams = [
        session.generate(core_models.tokens(i, T), max_tokens=5)
        for i, (session, T) in enumerate(zip(sessions, lengths, strict=True))
    ]
    batch = model.batch(4)
    first = batch.step(streams)
    assert [session.position for session in sessions] == [CHUNK - 3, 1, 1, 1]
    assert [token is not None for token in first] == [False, True, False, False]
    second = batch.step(streams)
    assert [session.position for session in sessions] == [400, 2, 1 + CHUNK - 147 - 1 - 1, 2]
    assert [token is not None for token in second] == [True, True, False, True]
    assert streams[2].timings["prompt_tokens"] == sessions[2].position


def test_forced_tokens_and_empty_prompts(model: _core.Model) -> None:
    """A session that has logits may be asked to go on without reading anything first."""
    ids, said = core_models.tokens(1, 20), [[], []]
    alone, together, other = (model.session(50) for _ in range(3))
    for session in (alone, together):
        session.prefill(ids)
    streams = [
        together.generate(ids[:0], max_tokens=4, temperature=1.0, seed=2),
        other.generate(ids[:3], max_tokens=5),
    ]
    streams[1].force([7, 8])
    drain(model.batch(2), streams, said)
    want = list(alone.generate(ids[:0], max_tokens=4, temperature=1.0, seed=2))
    assert [id for id, *_ in said[0]] == [id for id, *_ in want]
    assert [id for id, *_ in said[1]][:2] == [7, 8] and len(said[1]) == 5
    with pytest.raises(ValueError, match="holds no logits"):
        model.batch(1).step([model.session(9).generate(ids[:0], max_tokens=1)])


@pytest.mark.parametrize("deep", [[], [0, 2]], ids=["plain", "deepstack"])
def test_images_among_other_prompts(deep: list[int]) -> None:
    """Features and positions go with their tokens, over several steps."""
    fields, tensors = seeing(deep=deep)
    model, grid = core_of(fields, tensors), (1, 26, 24)
    features = model.encode_vision(noise(grid), grid)
    image, n = fields["image_token_id"], len(features)
    shown = np.full(n, image, np.int32)
    ids = np.concatenate((core_models.tokens(2, 30), shown, core_models.tokens(3, 9)))
    at = np.tile(np.arange(len(ids), dtype=np.int32), (3, 1))
    at[1:, 30 : 30 + n] = [[30 + i // 12 for i in range(n)], [30 + i % 12 for i in range(n)]]
    at[:, 30 + n :] -= n - 13
    seen = {"features": features, "position_ids": at, "max_tokens": 6}
    plain = core_models.tokens(4, 150)
    alone = [model.session(400) for _ in range(3)]
    want = [
        list(alone[0].generate(ids, **seen)),
        list(alone[1].generate(plain, max_tokens=9)),
        list(alone[2].generate(ids, **seen)),
    ]
    together = [model.session(400) for _ in range(3)]
    streams = [
        together[0].generate(ids, **seen),
        together[1].generate(plain, max_tokens=9),
        together[2].generate(ids, **seen),
    ]
    said: list[list[Any]] = [[], [], []]
    drain(model.batch(3), streams, said)
    assert said == want
    for one, other in zip(together, alone, strict=True):
        same(one, other)


# ---- ending early, and wrong use -----------------------------------------------------------------


def test_a_cancelled_stream_leaves_and_the_others_go_on(model: _core.Model) -> None:
    sessions, batch = [model.session(100) for _ in range(3)], model.batch(3)
    streams = [
        session.generate(core_models.tokens(i, 10), max_tokens=8)
        for i, session in enumerate(sessions)
    ]
    batch.step(streams)
    streams[1].cancel()
    said = batch.step(streams)
    assert said[1] is None and streams[1].finish_reason == "cancelled"
    assert said[0] is not None and said[2] is not None
    assert [session.position for session in sessions] == [11, 10, 11]


def test_cancelling_all_stops_within_a_step() -> None:
    """Many layers, so that a step is long: the cancel comes while it runs."""
    model = core_models.both(num_hidden_layers=40, intermediate_size=3000, threads=1)[0]
    sessions, batch = [model.session(300) for _ in range(4)], model.batch(4)
    streams = [
        session.generate(core_models.tokens(i, 60), max_tokens=8)
        for i, session in enumerate(sessions)
    ]

    def cancel() -> None:
        time.sleep(0.03)
        for stream in streams:
            stream.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    while any(stream.finish_reason is None for stream in streams):
        batch.step(streams)
    thread.join()
    assert {stream.finish_reason for stream in streams} == {"cancelled"}
    for i, session in enumerate(sessions):  # usable: empty, or as the last whole step left it
        assert (session.position == 0) == (session.logits is None)
        session.prefill(core_models.tokens(i, 20))
        assert session.logits is not None


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupt_empties_the_sessions_of_the_step() -> None:
    model = core_models.both(num_hidden_layers=80, intermediate_size=6000, threads=1)[0]
    idle, busy = model.session(3000), [model.session(3000) for _ in range(2)]
    ids = core_models.tokens(0, 2500)
    idle.prefill(ids[:5])
    before = idle.logits
    streams = [session.generate(ids, max_tokens=2) for session in busy]
    streams.append(idle.generate(ids[:0], max_tokens=0))
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    batch = model.batch(3)
    with pytest.raises(KeyboardInterrupt):
        while True:
            batch.step(streams)
    timer.join()
    assert idle.position == 5 and np.array_equal(idle.logits, before)
    positions = {session.position for session in busy}
    assert positions == {0} or 0 not in positions  # it may have come between two steps
    if positions == {0}:
        assert [stream.finish_reason for stream in streams[:2]] == ["cancelled"] * 2
        alone = model.session(100)
        for session in (alone, busy[0]):
            session.prefill(ids[:9])
        same(busy[0], alone)


def test_one_that_does_not_fit_changes_nothing(model: _core.Model) -> None:
    small, large, batch = model.session(20), model.session(200), model.batch(2)
    streams = [
        large.generate(core_models.tokens(1, 10), max_tokens=3),
        small.generate(core_models.tokens(2, 21), max_tokens=3),
    ]
    with pytest.raises(ContextLengthError, match="21 tokens .* context of 20"):
        batch.step(streams)
    assert (large.position, small.position) == (0, 0)
    assert streams[0].finish_reason is None
    want = list(model.session(200).generate(core_models.tokens(1, 10), max_tokens=3))
    said: list[list[Any]] = [[]]
    drain(batch, streams[:1], said)
    assert [id for id, *_ in said[0]] == [id for id, *_ in want]


def test_a_full_context_ends_its_stream_alone(model: _core.Model) -> None:
    small, large, said = model.session(12), model.session(200), [[], []]
    streams = [
        small.generate(core_models.tokens(3, 10)),
        large.generate(core_models.tokens(4, 10), max_tokens=9),
    ]
    drain(model.batch(2), streams, said)
    assert streams[0].finish_reason == "length" and len(said[0]) == 3 and len(said[1]) == 9


def test_wrong_use(model: _core.Model) -> None:
    ids = core_models.tokens(1, 3)
    session, other = model.session(9), core_models.both(seed=2)[0]
    stream, batch = session.generate(ids), model.batch(2)
    for bad in (0, 65):
        with pytest.raises(ValueError, match="1 to 64"):
            model.batch(bad)
    with pytest.raises(BusyError):
        batch.step([stream, session.generate(ids)])
    assert session.position == 0 and batch.size == 2
    with pytest.raises(ValueError, match="another model"):
        batch.step([stream, other.session(9).generate(ids)])
    with pytest.raises(ValueError, match="3 streams"):
        batch.step([model.session(9).generate(ids) for _ in range(3)])
    with pytest.raises(TypeError, match=r"streams\[1\]"):
        batch.step([stream, iter([])])
    with pytest.raises(TypeError):
        batch.step(5)
    with pytest.raises(TypeError):
        _core.Batch()
    assert batch.step([]) == []
    assert batch.step([stream])[0] is not None  # none of it left the stream busy


def test_a_stream_may_say_nothing(model: _core.Model) -> None:
    banned = {id: -np.inf for id in range(307)}
    stream = model.session(9).generate(core_models.tokens(1, 3), logit_bias=banned)
    with pytest.raises(ValueError, match="no token is left"):
        model.batch(1).step([stream])


def test_memory_of_a_batch_is_let_go(model: _core.Model) -> None:
    """Nothing of a step is kept: sessions go with the last reference to them."""
    batch, session = model.batch(1), model.session(50)
    stream = session.generate(core_models.tokens(1, 5), max_tokens=3)
    counts = sys.getrefcount(stream), sys.getrefcount(session)
    batch.step([stream])
    assert (sys.getrefcount(stream), sys.getrefcount(session)) == counts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told(model: _core.Model) -> None:
    stream = model.session(50).generate(core_models.tokens(1, 5), max_tokens=3)
    batch = model.batch(1)
    child = os.fork()
    if child == 0:
        try:
            batch.step([stream])
        except qwen35.ForkError:
            os._exit(3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert batch.step([stream])[0] is not None


def test_threads_have_batches_of_their_own(model: _core.Model) -> None:
    """Two batches on one model at a time: each says what it says alone."""

    def answers() -> list[list[int]]:
        said: list[list[Any]] = [[], [], []]
        streams = [
            model.session(99).generate(core_models.tokens(i, 20 + i), max_tokens=15)
            for i in range(3)
        ]
        drain(model.batch(3), streams, said)
        return [[id for id, *_ in tokens] for tokens in said]

    want, got = answers(), []
    threads = [threading.Thread(target=lambda: got.append(answers())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [want] * 4


# ---- the other targets ---------------------------------------------------------------------------


@pytest.mark.skipif("QWEN35_ISA" in os.environ, reason="runs under another target already")
@pytest.mark.parametrize("isa", [isa for isa in _core.kernels() if isa != _core.cpu()["isa"]])
def test_other_targets(isa: str) -> None:
    """The tests above that compare numbers, once for each target this machine has."""
    chosen = "three_timelines or bits or images"
    command = [sys.executable, "-m", "pytest", "-x", "-q", str(Path(__file__)), "-k", chosen]
    environment = os.environ | {"QWEN35_ISA": isa}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
