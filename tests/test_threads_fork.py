"""Oracle: the same computation alone, in one thread of a fresh process, itself held against the
NumPy reference.

Threads, signals, forked children, and the environment variables that reach the core. Nothing here
measures time; a subprocess that hangs is ended after a minute and fails.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import core_models
import numpy as np
import pytest
from numpy.typing import NDArray

from qwen35 import BusyError, _core

HERE = Path(__file__).parent
ISA = _core.cpu()["isa"]
N = 700  # tokens: two chunks, so that progress is told in between


@pytest.fixture(scope="module")
def model() -> _core.Model:
    return core_models.both(seed=1)[0]


def prefilled(model: _core.Model, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    session = model.session(len(ids) + 100)
    session.prefill(ids)
    return session.logits


def same(got: NDArray[np.float32], want: NDArray[np.float32]) -> None:
    """Bits; the portable target's OpenBLAS products depend on their shape."""
    if ISA == "c":
        assert core_models.relative_error(got, want) <= 1e-5
    else:
        assert np.array_equal(got, want)


# ---- threads -------------------------------------------------------------------------------------


def test_sessions_in_threads_are_as_alone(model: _core.Model) -> None:
    prompts = [core_models.tokens(seed, 50 + 37 * seed) for seed in range(8)]
    alone = [prefilled(model, ids) for ids in prompts]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for got, want in zip(
                pool.map(lambda ids: prefilled(model, ids), prompts), alone, strict=True
            ):
                same(got, want)


def test_models_in_threads_are_as_alone() -> None:
    """Making and freeing models while others compute."""
    ids = core_models.tokens(3, 60)
    alone = [prefilled(core_models.both(seed=s)[0], ids) for s in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for seed, got in enumerate(
            pool.map(lambda s: prefilled(core_models.both(seed=s)[0], ids), range(4))
        ):
            same(got, alone[seed])


def test_streams_in_threads_are_as_alone(model: _core.Model) -> None:
    """Sampled tokens too: a seed belongs to its stream."""

    def draw(seed: int) -> list[int]:
        stream = model.session(100).generate(
            core_models.tokens(seed, 20), max_tokens=40, temperature=1.0, seed=seed
        )
        return [token for token, *_ in stream]

    alone = [draw(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(draw, range(6))) == alone
    assert len({tuple(tokens) for tokens in alone}) == 6


def test_forks_of_one_session_in_threads(model: _core.Model) -> None:
    """They share K/V pages, and copy one before writing to it."""
    start = core_models.tokens(1, 90)
    session = model.session(N)
    session.prefill(start)
    tails = [core_models.tokens(10 + i, 40) for i in range(6)]
    forks = [session.fork() for _ in tails]

    def go_on(i: int) -> NDArray[np.float32]:
        forks[i].prefill(tails[i])
        return forks[i].logits

    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(go_on, range(6)))
    for i, tail in enumerate(tails):
        same(got[i], prefilled(model, np.concatenate((start, tail))))


def test_a_session_has_one_user(model: _core.Model) -> None:
    """While one thread prefills, use by another is BusyError, and the first does not notice."""
    ids, errors = core_models.tokens(2, N), []
    session = model.session(N + 1)
    snapshot = session.snapshot()

    def intrude() -> None:
        uses = (
            lambda: session.prefill(ids[:1]),
            lambda: session.logits_all(ids[:1]),
            lambda: session.score(ids[:1]),
            lambda: session.snapshot(),
            lambda: session.restore(snapshot),
            lambda: session.fork(),
            lambda: session.dump(),
            lambda: session.ids,
            lambda: session.logits,
            lambda: next(session.generate(ids[:1])),
        )
        for use in uses:
            try:
                use()
            except BusyError as error:
                errors.append(error)

    def progress(done: int, total: int) -> None:
        if done < total and not errors:
            other = threading.Thread(target=intrude)
            other.start()
            other.join()

    session.prefill(ids, progress=progress)
    assert len(errors) == 10
    same(session.logits, prefilled(model, ids))


# ---- interruption --------------------------------------------------------------------------------


def test_progress_counts_up_to_the_whole(model: _core.Model) -> None:
    told: list[tuple[int, int]] = []
    model.session(N).prefill(core_models.tokens(2, N), progress=lambda *pair: told.append(pair))
    assert told[-1] == (N, N)
    assert [d for d, _ in told] == sorted({d for d, _ in told})


def test_progress_that_raises_leaves_whole_chunks(model: _core.Model) -> None:
    ids, session = core_models.tokens(2, N), model.session(N)

    def progress(done: int, total: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        session.prefill(ids, progress=progress)
    assert 0 < session.position < N
    assert np.array_equal(session.ids, ids[: session.position])
    session.prefill(ids[session.position :])
    same(session.logits, prefilled(model, ids))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_signal_in_prefill(model: _core.Model) -> None:
    """A handler that raises, as Ctrl-C does: raised out of prefill, and the session goes on from
    where `position` says.
    """

    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    ids, session = core_models.tokens(4, 20_000), model.session(20_000)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Alarm):
            for _ in range(100):  # as long as it takes on a fast machine
                session.prefill(ids)
                session = model.session(20_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    stopped = session.position
    assert stopped < 20_000
    session.prefill(ids[stopped : stopped + 50])
    same(session.logits, prefilled(model, ids[: stopped + 50]))


# ---- processes -----------------------------------------------------------------------------------


def run_script(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with `model`, `ids`, `reference`; a hang is ended after a minute."""
    head = """
        import os, sys, hashlib
        import core_models, numpy as np
        import qwen35
        from qwen35 import _core
        sizes = dict(seed=1, hidden_size=264, intermediate_size=520)  # work for a team
        model, reference = core_models.both(**sizes)
        ids = core_models.tokens(1, 100)
        def error(got, want):
            return core_models.relative_error(got, want)
        def logits(m):
            session = m.session(200)
            session.prefill(ids)
            return session.logits
    """
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its children too
            pytest.fail("hung for a minute")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def output_of(body: str, **environment: str) -> str:
    done = run_script(body, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


RIGHT = "print(error(logits(model), reference.logits(ids)[-1]) <= 1e-4)"

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
def test_child_gets_fork_error_and_parent_goes_on() -> None:
    out = output_of(
        """
        before = logits(model)
        session = model.session(200)
        session.prefill(ids[:50])
        child = os.fork()
        if child == 0:
            caught = 0
            for use in (
                lambda: session.prefill(ids[50:]),
                lambda: session.logits_all(ids[50:]),
                lambda: session.score(ids[50:]),
                lambda: next(session.generate(ids[50:])),
                lambda: logits(model),
            ):
                try:
                    use()
                except qwen35.ForkError as error:
                    caught += "spawn" in str(error)
            os._exit(caught)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        session.prefill(ids[50:])
        print(error(session.logits, before) <= 1e-5)
        """
    )
    assert out.split() == ["5", "True"]


@needs_fork
def test_child_may_load_its_own_model() -> None:
    """As the message says. OpenMP's threads stayed in the parent: nobody may wait for them."""
    out = output_of(
        """
        before = logits(model)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            own = core_models.both(**sizes)[0]
            os._exit(7 if error(logits(own), before) <= 1e-5 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(error(logits(model), before) <= 1e-5)
        """
    )
    assert out.split() == ["7", "True"]


@needs_fork
def test_child_may_drop_and_exit() -> None:
    """Collecting the parent's objects in the child is no use of them."""
    out = output_of(
        """
        import gc
        session = model.session(200)
        session.prefill(ids)
        stream = session.generate(ids[:3])
        next(stream)
        child = os.fork()
        if child == 0:
            del stream, session, model
            gc.collect()
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert out == "7"


@needs_fork
def test_multiprocessing_pool_by_fork() -> None:
    """The usual accident: a module-level model used inside Pool.map. An error, not a hang."""
    out = output_of(
        """
        import multiprocessing
        def work(i):
            try:
                logits(model)
            except qwen35.ForkError:
                return "ForkError"
        logits(model)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(*pool.map(work, range(4)))
        print(logits(model).shape)
        """
    )
    assert out.splitlines() == ["ForkError ForkError ForkError ForkError", "(307,)"]


@pytest.mark.parametrize(
    "value", ["", "0", "1", "-3", "3", "64", "abc", "2,1", " 2 ", "99999999999"]
)
def test_odd_omp_num_threads(value: str) -> None:
    """libgomp complains about some of these itself; the result is what `threads=` says it is."""
    assert output_of(RIGHT, OMP_NUM_THREADS=value) == "True"


@pytest.mark.parametrize(
    "name", ["OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OPENBLAS_NUM_THREADS", "OMP_MAX_ACTIVE_LEVELS"]
)
def test_other_thread_settings(name: str) -> None:
    """A limit of one thread has to give the right result as well, with fewer workers than the model
    asked for.
    """
    assert output_of(RIGHT, **{name: "1"}) == "True"


# ---- QWEN35_ISA ----------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ["c", "avx2", "avx512"])
def test_isa_by_name(isa: str) -> None:
    """A target that is there computes the reference's logits; one that is not is an ImportError
    with what there is.
    """
    done = run_script(f"print(_core.cpu()['isa'])\n{RIGHT}", QWEN35_ISA=isa)
    if isa in _core.kernels():
        assert done.stdout.split() == [isa, "True"], done.stderr
    else:
        assert done.returncode != 0
        assert "ImportError" in done.stderr and "'c'" in done.stderr


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "c ", "none", "neon", "%s%n"])
def test_unknown_isa_is_an_import_error(isa: str) -> None:
    done = run_script("", QWEN35_ISA=isa)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert isa in last
    assert all(name in last for name in _core.kernels())


def test_empty_isa_means_the_best() -> None:
    assert output_of("print(_core.cpu()['isa'])", QWEN35_ISA="") == _core.kernels()[-1]


def test_isas_agree() -> None:
    """Between targets only the order of sums differs: 1e-4 of the largest logit, as between each
    and the reference.
    """
    results = {
        isa: np.array(output_of("print(*logits(model).tolist())", QWEN35_ISA=isa).split(), float)
        for isa in _core.kernels()
    }
    for got in results.values():
        assert core_models.relative_error(got, results["c"]) <= 1e-4
