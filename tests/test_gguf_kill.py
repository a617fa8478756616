"""Oracle: the bytes of a conversion that nobody disturbed, and what a folder may hold: nothing, or
such files whole, and the part files of the run that was killed last.

Fifty conversions are killed (SIGKILL), each at its own moment, spread over all of its duration;
others are interrupted, or run out of disk.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import qwen35

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals, forks")

KILLS = 50
MOST_RUNS = 8 * KILLS  # some end before they are killed
NAMES = ["mmproj-x-BF16.gguf", "x.gguf"]

# Imports once and forks for every conversion. A child is collected only when told: until then its
# number is its own, whatever became of it.
SERVER = """
import os, sys, time
from pathlib import Path
from qwen35.checkpoint import open_checkpoint
from qwen35.gguf_export import export

def report(done, total, stage):
    if stage == sys.argv[2]:
        print("there", flush=True)
        time.sleep(600)

def convert(overwrite):
    checkpoint = open_checkpoint("tiny")
    options = {"threads": 1, "mtp": False, "overwrite": overwrite, "report": report}
    export(checkpoint, Path(sys.argv[1]), "q8_0", **options)

for line in iter(sys.stdin.readline, ""):
    if line == "collect\\n":
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    pid = os.fork()
    if not pid:
        status = 1
        try:
            convert(line == "replace\\n")
            status = 0
        finally:
            os._exit(status)
    print(pid, flush=True)
"""


class Conversions:
    """Conversions of tiny, one after the other, each in a process of its own. stop_at: a stage at
    which they say so and wait.
    """

    def __init__(self, path: Path, stop_at: str = "") -> None:
        command = [sys.executable, "-c", SERVER, str(path), stop_at]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, word: str) -> int:
        assert self._server.stdin is not None
        self._server.stdin.write(f"{word}\n")
        self._server.stdin.flush()
        return int(self.line())

    def line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()

    def close(self) -> None:
        self._server.communicate(timeout=60)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Both files, whole; they load."""
    folder = tmp_path_factory.mktemp("good")
    run = Conversions(folder / "x.gguf")
    run.tell("start")
    assert run.tell("collect") == 0
    run.close()
    qwen35.load(folder / "x.gguf", context=64).close()
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(found) == NAMES
    return found


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Conversions]:
    runs = Conversions(tmp_path / "x.gguf")
    yield runs
    runs.close()


def part_files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".part"))


def seconds_of_a_run(runs: Conversions) -> float:
    began = time.perf_counter()
    runs.tell("replace")
    assert runs.tell("collect") == 0
    return time.perf_counter() - began


def test_killed_at_any_moment(tmp_path: Path, runs: Conversions, good: dict[str, bytes]) -> None:
    """Every second run replaces files that are there: these must stay until the new ones are.

    What the last killed run left is cleared by the next of the same name, so it never grows. How
    long a run takes is measured again for every ten kills, and taken for less where one was over
    too soon: the machine may be busy with other things.
    """
    moments, turn, states = random.Random(7), 0, set()
    for kill in range(KILLS):
        if kill % 10 == 0:
            duration = seconds_of_a_run(runs)
        while True:
            turn += 1
            assert turn < MOST_RUNS
            replace = turn % 2 == 1
            for name, data in good.items():
                (tmp_path / name).unlink(missing_ok=True)
                if replace:
                    (tmp_path / name).write_bytes(data)
            pid = runs.tell("replace" if replace else "start")
            time.sleep(duration * (kill + moments.random()) / KILLS)
            os.kill(pid, signal.SIGKILL)
            status = runs.tell("collect")
            parts = part_files(tmp_path)
            found = check_folder(tmp_path, good)
            assert found == 2 or not replace
            assert len(parts) <= (2 if status else 0)
            if status:
                break
            duration *= 0.9
        assert status == -signal.SIGKILL
        states.add((found, len(parts)))
    assert len(states) > 1, states  # they were stopped in different places
    runs.tell("replace")
    assert runs.tell("collect") == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == good


def check_folder(folder: Path, good: dict[str, bytes]) -> int:
    """How many of the files are there: whole ones, and the text never without its tower."""
    found = {name: (folder / name).read_bytes() for name in NAMES if (folder / name).exists()}
    assert all(good[name] == data for name, data in found.items())
    assert "x.gguf" not in found or len(found) == 2
    return len(found)


@pytest.mark.parametrize("stage", ["quantize", "vision"])
def test_a_killed_run_does_not_refuse_the_next(
    tmp_path: Path, stage: str, runs: Conversions, good: dict[str, bytes]
) -> None:
    """Without --overwrite: no file has its name before both are whole."""
    stopped = Conversions(tmp_path / "x.gguf", stage)
    pid = stopped.tell("start")
    assert stopped.line() == "there\n"
    os.kill(pid, signal.SIGKILL)
    assert stopped.tell("collect") == -signal.SIGKILL
    stopped.close()
    assert sorted(os.listdir(tmp_path)) == part_files(tmp_path) != []
    runs.tell("start")
    assert runs.tell("collect") == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == good


# ---- the command ---------------------------------------------------------------------------------


def command(path: Path, *words: str) -> list[str]:
    start = "import sys; from qwen35 import cli; "
    main = "sys.exit(cli.main(['quantize', 'tiny', *sys.argv[1:], '--threads', '1']))"
    return [sys.executable, "-c", f"{start}{' '.join(words)}{main}", str(path)]


# Encoding takes no time worth mentioning on tiny: this makes sure that Ctrl-C finds it.
SLOWLY = """
import time, qwen35._core, qwen35.quantize as q
rows = q.finite_rows
q.finite_rows = lambda *given: time.sleep(0.05) or rows(*given)
"""


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    slow = f"exec({SLOWLY!r});"
    run = subprocess.Popen(
        command(tmp_path / "x.gguf", slow), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not part_files(tmp_path) and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    out, error = run.communicate(timeout=120)
    assert (run.returncode, out, error) == (130, b"", b"")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_on_the_way(tmp_path: Path) -> None:
    """The size of files is limited to 1 MB behind the check of the space that is free."""
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (1_000_000, r.RLIM_INFINITY));"
    done = subprocess.run(
        command(tmp_path / "x.gguf", limit), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"qwen35: {tmp_path / 'x.gguf'}: writing stopped after ")
    assert "File too large" in done.stderr and done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []
