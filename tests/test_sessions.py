"""Oracle: a fresh session that reads the same tokens in one piece; for what is reused, literals.

On the scripted core a timeline's logits depend on its ids alone; on the real one a prefill cut
elsewhere may differ in the last bits, so its logits are compared within 1e-5 of their largest and
its greedy tokens exactly.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_core import after, fake_model

import qwen35
from qwen35.pool import IDLE_LIMIT
from qwen35.prompt import Prompt
from qwen35.session import MARK_GAP, MARK_LIMIT

RNG = np.random.default_rng(5)
LONG = RNG.integers(0, 250, 200).tolist()


@pytest.fixture
def fake(small: Path) -> Iterator[Any]:
    with fake_model(small, context=1000) as model:
        yield model


@pytest.fixture(scope="module")
def real(small: Path) -> Iterator[Any]:
    with qwen35.load(small, context=1000, threads=1) as model:
        yield model


def fresh_logits(model: Any, ids: list[int]) -> Any:
    return model.logits(ids, last_only=True)[0]


def assert_same(got: Any, want: Any) -> None:
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


# ---- sync ----------------------------------------------------------------------------------------


def test_sync_appends_what_is_missing(real: Any) -> None:
    session = real.session()
    assert (session.position, session.logits) == (0, None)
    assert session.sync(LONG[:70]) == 0
    assert session.sync(LONG[:130]) == 70
    assert session.sync(LONG[:130]) == 130
    assert session.position == 130 and session.ids.tolist() == LONG[:130]
    assert_same(session.logits, fresh_logits(real, LONG[:130]))


def test_sync_goes_back_to_a_mark_where_the_timelines_part(real: Any) -> None:
    session = real.session()
    session.sync(LONG[:100])
    session.sync(LONG)
    other = [*LONG[:150], 7, 8, 9]
    assert session.sync(other) == 100  # the mark before the place where they part
    assert_same(session.logits, fresh_logits(real, other))
    assert session.sync([1, 2, 3]) == 0
    assert_same(session.logits, fresh_logits(real, [1, 2, 3]))


def test_sync_to_a_prefix_goes_back(real: Any) -> None:
    session = real.session()
    session.sync(LONG[:50])
    session.sync(LONG)
    assert session.sync(LONG[:50]) == 50
    assert_same(session.logits, fresh_logits(real, LONG[:50]))
    assert session.sync(LONG[:49]) == 0
    assert_same(session.logits, fresh_logits(real, LONG[:49]))


def test_sync_takes_text_and_prompts_and_refuses_what_does_not_fit(real: Any) -> None:
    session = real.session(context=20)
    assert session.sync("the other") == 0
    assert session.sync(real.prompt("the other day")) == len(real.tokenize("the other"))
    with pytest.raises(qwen35.ContextLengthError, match="21 tokens .* holds 20"):
        session.sync([1] * 21)
    assert session.sync([1] * 20) == 0


def test_sync_reports_progress(fake: Any) -> None:
    seen: list[tuple[int, int]] = []
    session = fake.session()
    session.sync(LONG[:40])
    session.sync(LONG[:80], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (80, 80) and all(a < b for a, b in zip(seen, seen[1:], strict=False))
    assert all(40 < done <= 80 == total for done, total in seen)


def test_what_progress_raises_leaves_the_session_usable(real: Any) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough

    session = real.session()
    with pytest.raises(Enough):
        session.sync(LONG, progress=stop)
    done = session.position
    assert session.sync(LONG) == done
    assert_same(session.logits, fresh_logits(real, LONG))


def test_marks_are_bounded_and_the_first_stays(fake: Any) -> None:
    session = fake.session()
    for end in range(20, 200, 20):
        session.sync(LONG[:end])
    assert [mark.position for mark in session._marks] == [20, 180]
    assert len(session._marks) == MARK_LIMIT


# ---- snapshot, fork, files -----------------------------------------------------------------------


def test_snapshot_and_restore(real: Any) -> None:
    session = real.session()
    session.sync(LONG[:90])
    snapshot = session.snapshot()
    assert snapshot.position == 90 and snapshot.nbytes > 0
    want = session.logits
    session.sync([*LONG[:120], 3])
    session.restore(snapshot)
    assert session.position == 90 and np.array_equal(session.logits, want)
    assert session.sync(LONG) == 90
    assert_same(session.logits, fresh_logits(real, LONG))
    with pytest.raises(TypeError, match="snapshot\\(\\) returned"):
        session.restore(want)


def test_restore_of_another_timeline_forgets_its_marks(real: Any) -> None:
    session, other = real.session(), real.session()
    session.sync(LONG[:60])
    other.sync([9, 8, 7])
    session.restore(other.snapshot())
    assert session.ids.tolist() == [9, 8, 7]
    assert session.sync(LONG[:60]) == 0
    assert_same(session.logits, fresh_logits(real, LONG[:60]))


def test_forks_go_their_own_ways(real: Any) -> None:
    session = real.session()
    session.sync(LONG[:90])
    twin = session.fork()
    twin.sync([*LONG[:90], 1, 2])
    session.sync([*LONG[:90], 3, 4])
    assert_same(twin.logits, fresh_logits(real, [*LONG[:90], 1, 2]))
    assert_same(session.logits, fresh_logits(real, [*LONG[:90], 3, 4]))


def test_a_saved_session_goes_on_as_if_nothing_happened(real: Any, tmp_path: Path) -> None:
    session, path = real.session(), tmp_path / "talk.session"
    session.sync(LONG[:90])
    session.save(path)
    later = real.session()
    later.load(path)
    assert np.array_equal(later.logits, session.logits)
    assert later.sync(LONG) == 90
    assert_same(later.logits, fresh_logits(real, LONG))
    assert [file.name for file in tmp_path.iterdir()] == ["talk.session"]


def damaged(data: bytes, how: str) -> bytes:
    header = json.loads(data[23 : 23 + int.from_bytes(data[15:23], "little")])
    if how == "empty":
        return b""
    if how == "cut":
        return data[:-1]
    if how == "longer":
        return data + b"\0"
    if how == "flipped":
        return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    if how == "header length":
        return data[:15] + (2**62).to_bytes(8, "little") + data[23:]
    changes = {
        "version": {"version": 1},
        "other model": {"fingerprint": "0" * 64},
        "shape": {"arrays": [{**header["arrays"][0], "shape": [-1]}]},
        "huge": {"arrays": [{**header["arrays"][0], "shape": [2**62, 2**62]}]},
        "dtype": {"arrays": [{**header["arrays"][0], "dtype": "object"}]},
    }
    body = data[23 + int.from_bytes(data[15:23], "little") :]
    text = json.dumps({**header, **changes[how]}).encode()
    return data[:15] + len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "not a session file"),
        ("cut", "bytes of data"),
        ("longer", "bytes of data"),
        ("flipped", "checksum"),
        ("header length", "header length"),
        ("version", "version 1: this package reads 2"),
        ("other model", "another model"),
        ("shape", "expected name, dtype and shape"),
        ("huge", "bytes of data"),
        ("dtype", "expected name, dtype and shape"),
    ],
)
def test_damaged_session_files_are_refused(
    real: Any, tmp_path: Path, how: str, message: str
) -> None:
    session, path = real.session(), tmp_path / "talk.session"
    session.sync(LONG[:30])
    session.save(path)
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(qwen35.ModelFormatError, match=message):
        session.load(path)
    assert session.ids.tolist() == LONG[:30]  # as it was


def test_a_failed_save_leaves_the_old_file(real: Any, tmp_path: Path) -> None:
    session, path = real.session(), tmp_path / "talk.session"
    session.sync(LONG[:30])
    session.save(path)
    before = path.read_bytes()
    with pytest.raises(OSError):
        session.save(tmp_path / "missing" / "talk.session")
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError):
        session.save(target)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "talk.session"]


def test_a_closed_session_says_so(real: Any) -> None:
    with real.session() as session:
        session.sync([1, 2])
    session.close()
    assert repr(session) == "<qwen35.Session closed>"
    with pytest.raises(qwen35.ClosedError, match="model.session"):
        session.sync([1, 2])


# ---- reuse between requests ----------------------------------------------------------------------


def answer(model: Any, ids: list[int], **fields: Any) -> Any:
    return model.generate(ids, max_tokens=8, temperature=0, ignore_eos=True, **fields).result()


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_reused_prefix_gives_the_tokens_of_a_fresh_model(small: Path, dtype: str) -> None:
    with qwen35.load(small, context=1000, threads=1, dtype=dtype) as model:
        prompts = [LONG[:100], LONG, LONG[:100], [*LONG[:150], 1], [*LONG[:150], 2], LONG[:30]]
        got = [answer(model, ids) for ids in prompts]
        told = [result.usage.cached_tokens for result in got]
    fresh = []
    for ids in prompts:
        with qwen35.load(small, context=1000, threads=1, dtype=dtype) as model:
            fresh.append(answer(model, ids))
    assert [result.token_ids for result in got] == [result.token_ids for result in fresh]
    assert told[0] == 0 and told[1] == 100 and told[2] == 100
    assert all(result.usage.cached_tokens == 0 for result in fresh)


def test_the_same_seed_draws_the_same_tokens_cold_and_warm(real: Any) -> None:
    results = [
        real.generate(LONG, max_tokens=12, temperature=1.0, seed=3, ignore_eos=True).result()
        for _ in range(3)
    ]
    assert results[0].token_ids == results[1].token_ids == results[2].token_ids
    assert results[2].usage.cached_tokens == len(LONG)
    other = real.generate(LONG, max_tokens=12, temperature=1.0, seed=4, ignore_eos=True).result()
    assert other.token_ids != results[0].token_ids


def test_penalties_count_a_reused_prompt_too(real: Any) -> None:
    """A prompt that was cached is still the prompt: repetition_penalty must see all of it."""
    cold = answer(real, LONG[:60], repetition_penalty=5.0)
    warm = answer(real, LONG[:60], repetition_penalty=5.0)
    assert warm.usage.cached_tokens == 60 and warm.token_ids == cold.token_ids


def test_the_next_turn_of_a_chat_starts_behind_the_last_message(fake: Any) -> None:
    first = [{"role": "user", "content": "a long question " * 10}]
    start = fake.prompt(first).ids.tolist()
    thought = fake.tokenize("hmm</think>\n\nyes", special=True)
    fake._core.script = after(start, thought, then=267)
    reply = fake.chat(first).result()
    turns = [*first, {"role": "assistant", "content": reply.text}, {"role": "user", "content": "?"}]
    before = fake._core.appended
    second = fake.chat(turns, max_tokens=1).result()
    # the template drops old reasoning, so the timelines part behind <|im_start|>assistant
    generation_prompt = start[::-1].index(266) + 1
    assert second.usage.cached_tokens == len(start) - generation_prompt
    assert fake._core.appended - before == second.usage.prompt_tokens - second.usage.cached_tokens


def test_the_third_prompt_with_a_shared_start_reuses_it(fake: Any) -> None:
    shared = LONG[:100]
    told = [answer(fake, [*shared, *range(i, i + 30)]).usage.cached_tokens for i in range(4)]
    assert told == [0, 0, 100, 100]  # the second shows where they part, and leaves a mark there


def test_scoring_reuses_what_questions_share(fake: Any) -> None:
    shared, scored = LONG[:100], []
    for i in range(4):
        before = fake._core.appended
        fake.score([*shared, *range(i, i + 30)], [[1, 2], [3]])
        scored.append(fake._core.appended - before)
    assert scored == [133, 133, 33, 33]


def test_short_prompts_are_read_in_one_piece(fake: Any) -> None:
    session = fake.session()
    short, long = (Prompt(np.array([1] * n + [266, 1])) for n in (MARK_GAP - 1, MARK_GAP))
    assert session._splits(short, start=0) == []
    assert session._splits(long, start=0) == [MARK_GAP]


def test_a_long_past_is_not_given_up_for_a_short_start(fake: Any) -> None:
    answer(fake, LONG[:40])
    answer(fake, LONG)  # grows out of the first
    answer(fake, [*LONG[:40], 5, 6])  # branches off at the mark at 40
    assert answer(fake, LONG).usage.cached_tokens == len(LONG)


def test_idle_sessions_are_bounded(fake: Any) -> None:
    for i in range(6):
        answer(fake, [i] * 30)
    assert len(fake._pool._idle) == IDLE_LIMIT
    assert answer(fake, [5] * 30).usage.cached_tokens == 30
    assert answer(fake, [0] * 30).usage.cached_tokens == 0


def test_threads_share_a_model_and_its_past(real: Any) -> None:
    prompts = [[*LONG[:80], i] for i in range(6)]
    want = [answer(real, ids).token_ids for ids in prompts]
    got: list[Any] = [None] * len(prompts)

    def work(i: int) -> None:
        for _ in range(5):
            got[i] = answer(real, prompts[i]).token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == want


def test_a_session_in_use_is_busy(small: Path) -> None:
    with qwen35.load(small, context=4000, threads=1) as model:
        session = model.session()
        started, errors = threading.Event(), []

        def progress(done: int, total: int) -> None:
            started.set()
            try:
                session.snapshot()
            except qwen35.BusyError as error:
                errors.append(str(error))

        session.sync([1] * 3000, progress=progress)
        assert started.is_set() and "another thread" in errors[0]
