"""Oracle: the tokens of a model that was never interrupted.

Ctrl-C in every phase, on the real core, in processes of their own. That it is prompt is measured by
benchmarks and not asserted here; that it comes before the work is done, is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")

START = """
import os, random, signal, sys, threading, time, warnings
import qwen35

warnings.simplefilter("ignore")
model = qwen35.load(sys.argv[1], threads=1)
rng = random.Random(1)
long_ids = [rng.randrange(250) for _ in range(60_000)]
short = dict(max_tokens=30, temperature=0, ignore_eos=True)

def interrupt_after(seconds):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    return timer

def interrupted(work):
    interrupt_after(0.1)
    try:
        work()
    except KeyboardInterrupt:
        return
    sys.exit("the interrupt did not come through")

def answer():
    return model.generate("the other", **short).result().token_ids
"""

PHASES = {
    "stream_in_prefill": """
stream = model.generate(long_ids, **short)
interrupted(stream.result)
result = stream.result()
assert (result.finish_reason, result.token_ids) == ("cancelled", []), result
assert model.last is result
assert list(stream) == []
""",
    "stream_in_decode": """
stream = model.generate([1, 2, 3], max_tokens=150_000, temperature=0, ignore_eos=True)
interrupted(stream.result)
result = stream.result()
assert result.finish_reason == "cancelled" and 0 < len(result.token_ids) < 150_000
again = model.generate([1, 2, 3], max_tokens=100, temperature=0, ignore_eos=True).result()
assert again.token_ids == result.token_ids[:100]
""",
    "batch_in_prefill": """
interrupted(lambda: model.generate_batch([long_ids, long_ids[::-1]], **short))
""",
    "batch_in_shared_start": """
interrupted(lambda: model.generate_batch([long_ids + [1], long_ids + [2]], **short))
""",
    "batch_in_decode": """
prompts, fields = [[1, 2, 3], [4], [5, 6]], dict(temperature=0, ignore_eos=True)
interrupted(lambda: model.generate_batch(prompts, max_tokens=150_000, **fields))
again = model.generate_batch(prompts, max_tokens=50, **fields)
alone = [model.generate(prompt, max_tokens=50, **fields).result() for prompt in prompts]
assert [a.token_ids for a in again] == [a.token_ids for a in alone]
""",
    "iteration": """
stream, said = model.generate([1, 2, 3], max_tokens=150_000, temperature=0, ignore_eos=True), []
interrupted(lambda: said.extend(stream))
assert [token.id for token in said] == stream.result().token_ids[:len(said)]
""",
    "sync": """
session = model.session()
interrupted(lambda: session.sync(long_ids))
done = session.position
assert done < len(long_ids) and session.ids.tolist() == long_ids[:done]
assert session.sync(long_ids[:done] + [5, 6]) == done
""",
    "logits": "interrupted(lambda: model.logits(long_ids))",
    "last_logits": "interrupted(lambda: model.logits(long_ids, last_only=True))",
    "score_prompt": "interrupted(lambda: model.score(long_ids, ['a']))",
    "score_continuation": "interrupted(lambda: model.score([1], [long_ids]))",
    "random_instants": """
signal.signal(signal.SIGALRM, signal.default_int_handler)
for _ in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 0.02))
        ids = [rng.randrange(250) for _ in range(rng.choice((3, 40, 300)))]
        with model.generate(ids, **short) as stream:
            stream.result()
            model.score(ids, [[1, 2], [3]])
        time.sleep(1)  # until it comes
    except KeyboardInterrupt:
        pass
thread = threading.Thread(target=model.close)  # nothing is left behind that it would wait for
got = answer()
thread.start()
thread.join(20)
assert got == want and not thread.is_alive()
print("done")
sys.exit()
""",
    "close": """
stream = model.generate(long_ids, **short)
interrupted(stream.result)
model.close()
print("done")
sys.exit()
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("long"), max_position_embeddings=200_000)


@pytest.mark.parametrize("phase", PHASES)
def test_interrupt_comes_through_and_leaves_the_model_as_new(folder: Path, phase: str) -> None:
    code = f"{START}\nwant = answer()\n{PHASES[phase]}\nassert answer() == want\nprint('done')\n"
    command = [sys.executable, "-X", "dev", "-W", "ignore", "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_an_interpreter_that_ends_with_a_running_stream_ends_cleanly(folder: Path) -> None:
    code = f"""{START}
stream = model.generate(long_ids, **short)
thread = threading.Thread(target=stream.result, daemon=True)
thread.start()
other = model.generate("the other", **short)
next(other)
print("done")
"""
    command = [sys.executable, "-X", "dev", "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert done.stderr == ""
