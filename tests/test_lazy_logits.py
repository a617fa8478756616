"""Oracle: the float64 reference, and for a timeline that went another way the bits of one that did
not: a hidden state that was kept gives the logits it would have given at once.
"""

from __future__ import annotations

import core_models
import numpy as np
import pytest

IDS = core_models.tokens(3, 300)


def test_logits_come_when_they_are_asked_for() -> None:
    core, reference = core_models.both()
    session, want = core.session(400), reference.logits(IDS)[-1]
    assert not session.has_logits and session.logits is None
    session.prefill(IDS)
    before = session.nbytes
    assert session.has_logits and session.nbytes == before  # to know it costs nothing
    got = session.logits
    assert core_models.relative_error(got, want) <= 1e-4  # f32 sums
    assert session.nbytes == before + got.nbytes
    assert np.array_equal(session.logits, got)  # kept
    session.prefill(IDS[:1])
    assert not np.array_equal(session.logits, got)  # but not too long


@pytest.mark.parametrize("asked", [False, True])
def test_a_point_of_the_timeline_keeps_what_its_logits_come_from(asked: bool) -> None:
    core, _ = core_models.both()
    plain = core.session(400)
    plain.prefill(IDS)
    want = plain.logits
    session = core.session(400)
    session.prefill(IDS)
    if asked:
        assert np.array_equal(session.logits, want)
    snapshot, dump, fork = session.snapshot(), session.dump(), session.fork()
    session.prefill(IDS[:7])
    assert not np.array_equal(session.logits, want)
    session.restore(snapshot)
    loaded = core.session(400)
    loaded.undump(dump)
    for other in (session, fork, loaded):
        assert other.has_logits and np.array_equal(other.logits, want)


def test_a_snapshot_holds_no_logits() -> None:
    small, large = (
        core_models.both(vocab_size=V)[0].session(20) for V in (256, 1024)
    )  # alike but for the vocabulary
    for session in (small, large):
        session.prefill(IDS[:5] % 256)
        assert session.logits is not None
    assert small.snapshot().nbytes == large.snapshot().nbytes
    assert small.dump()["timeline"].nbytes == large.dump()["timeline"].nbytes


def test_score_looks_one_token_back_over_every_edge() -> None:
    """Of pieces (8 rows of logits) and chunks (256 tokens)."""
    core, reference = core_models.both()
    session = core.session(400)
    session.prefill(IDS[:1])
    logprobs, best = session.score(IDS[1:])
    logits = reference.logits(IDS)
    want = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert np.abs(logprobs - want[np.arange(299), IDS[1:]]).max() <= 1e-3
    assert (best == logits[:-1].argmax(axis=1)).mean() > 0.98  # f32 may turn a tie
    assert core_models.relative_error(session.logits, logits[-1]) <= 1e-4


def test_a_cancelled_chunk_leaves_the_logits_of_the_last_whole_one() -> None:
    core, reference = core_models.both()
    session = core.session(700)
    with pytest.raises(ZeroDivisionError):
        session.prefill(np.concatenate([IDS, IDS]), progress=lambda done, total: 1 // 0)
    assert session.position == 256 and not session.has_logits  # nobody wanted that token's
    session = core.session(700)
    session.prefill(IDS)
    want = session.logits
    with pytest.raises(ZeroDivisionError):
        session.observe(IDS[:20], lambda name, x: 1 // 0)
    assert session.position == 300 and np.array_equal(session.logits, want)
