"""Oracle: literals: what `qwen35 eval fidelity` prints and writes, and its exit status."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import checkpoints
import pytest

from qwen35 import cli
from qwen35.fidelity import Fidelity

FIELDS = [field.name for field in dataclasses.fields(Fidelity)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("What is 23 + 45? The red box holds a key, the blue box holds a coin.\n" * 12)
    return path


def run_cli(text: Path, *more: str) -> int:
    args = ["eval", "fidelity", "--reference", "tiny", "--text", str(text), "--context", "64"]
    return cli.main([*args, "--tokens", "128", "--threads", "1", *more])


def test_command(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    more = ["--json", str(path), "--memory", "6MB", "--layers", "--quantize", "q8_0,Q4_0"]
    assert run_cli(text, *more) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line[:9].strip() for line in lines[1:4]] == ["tiny", "tiny q8_0", "tiny q4_0"]
    assert lines[-1].startswith("for 5.7 MiB choose tiny q4_0: ")
    assert "mlp.down_proj" in out and "\nlayer 7 " in out and err == ""
    found = json.loads(path.read_text())
    assert [one["name"] for one in found["results"]] == ["tiny", "tiny q8_0", "tiny q4_0"]
    assert set(found["results"][0]) == {*FIELDS, "bits_per_weight"}
    assert set(found["layers"]) == {"tiny q8_0", "tiny q4_0"}
    assert set(found["layers"]["tiny q4_0"]) == {"layers", "kinds", "matrices"}
    assert len(found["layers"]["tiny q4_0"]["layers"]) == 8


def test_command_errors(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    for message, args in (
        ("no MODEL given", (text,)),
        ("expected one of q2_k", (text, "--quantize", "q4_x")),
        ("No such file", (tmp_path / "none.txt", "tiny")),
        ("byte 3 is not UTF-8", (latin, "tiny")),
        ("text: 128 tokens, and one window takes", (text, "tiny", "--context", "129")),
        ("--context 0: expected at least 3", (text, "tiny", "--context", "0")),
        ("in a folder that exists", (text, "tiny", "--json", str(tmp_path / "no" / "x.json"))),
        ("nothing fits 1,000 bytes", (text, "tiny", "--memory", "1kB")),
    ):
        assert run_cli(*args) == 1
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    for args in (["eval"], ["eval", "fidelity"], ["eval", "fidelity", "--memory", "4 apples"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(args)
        assert exit_.value.code == 2


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("4GB", 4 * 10**9),
        ("4g", 4 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("900MiB", 900 * 2**20),
        ("7", 7),
    ],
)
def test_sizes(words: str, size: int) -> None:
    from qwen35.cli_eval import _bytes

    assert _bytes(words) == size


def test_models_of_two_sizes(
    small: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Perplexity decides, and errors of weights are left out: nothing corresponds."""
    other = checkpoints.write_checkpoint(tmp_path / "other", hidden_size=256)
    path = tmp_path / "out.json"
    args = [str(other), "--reference", str(small), "--memory", "1GB", "--json", str(path)]
    assert run_cli(text, *args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "* another number of parameters than the reference: compare perplexity."
    found = json.loads(path.read_text())
    assert [one["same_size"] for one in found["results"]] == [True, False]
    assert found["layers"] == {}
    best = min(found["results"], key=lambda one: one["perplexity"])
    assert lines[5].startswith(f"for 953.7 MiB choose {best['name']}: ")
