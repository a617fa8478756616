"""Oracle: the recipe's own bytes; KL to the released weights against that of the recipe's file;
literals of messages; an empty folder after what did not end well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from numpy.typing import NDArray

import qwen35
from qwen35 import calibrated, cli, fidelity
from qwen35.checkpoint import open_checkpoint
from qwen35.gguf_export import export
from qwen35.gguf_file import GgufFile

sys.path.append(str(Path(__file__).parents[1] / "examples" / "tiny"))

WIDE = {  # rows of whole blocks of 256 everywhere; heads tiled across them
    "hidden_size": 256,
    "intermediate_size": 512,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 8,
    "linear_value_head_dim": 64,
}
ROOT = "model.language_model."
IDS = np.random.default_rng(3).integers(0, 250, 1100).astype(np.int32)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_checkpoint(tmp_path_factory.mktemp("wide") / "wide", **WIDE)


def made(source: Any, path: Path, recipe: str = "q4_k_m", **options: Any) -> dict[str, str]:
    """The types of the matrices of the file that `export` makes."""
    checkpoint = open_checkpoint(source)
    try:
        export(checkpoint, path, recipe, threads=1, vision=False, **options)
    finally:
        checkpoint.close()
    return {name: span.type.name for name, span in GgufFile(path).spans.items()}


def tensor_bytes(path: Path) -> int:
    return sum(span.nbytes for span in GgufFile(path).spans.values())


def loss_of_products(path: Path, source: Path) -> float:
    """Mean squared error of logits against those of the source."""
    with qwen35.load(source) as want, qwen35.load(path) as got:
        return float(np.square(got.logits(IDS[:200]) - want.logits(IDS[:200])).mean())


@pytest.mark.parametrize("recipe", ["q3_k_m", "q4_k_m"])
def test_never_more_bytes_than_the_recipe(wide: Path, tmp_path: Path, recipe: str) -> None:
    plain = made(wide, tmp_path / "plain.gguf", recipe)
    found = made(wide, tmp_path / "calibrated.gguf", recipe, calibrate=IDS)
    assert set(found) == set(plain)
    assert tensor_bytes(tmp_path / "calibrated.gguf") <= tensor_bytes(tmp_path / "plain.gguf")
    # The drafts are never run on the text, so they are as the recipe has them.
    drafts = [name for name in plain if name.startswith("blk.4.")]
    assert drafts and {n: found[n] for n in drafts} == {n: plain[n] for n in drafts}
    assert loss_of_products(tmp_path / "calibrated.gguf", wide) < loss_of_products(
        tmp_path / "plain.gguf", wide
    )


def test_a_recipe_of_one_type_keeps_it(wide: Path, tmp_path: Path) -> None:
    plain = made(wide, tmp_path / "plain.gguf", "q4_0")
    assert made(wide, tmp_path / "calibrated.gguf", "q4_0", calibrate=IDS) == plain
    assert loss_of_products(tmp_path / "calibrated.gguf", wide) < loss_of_products(
        tmp_path / "plain.gguf", wide
    )


def test_from_a_gguf_file(wide: Path, tmp_path: Path) -> None:
    """The columns of out_proj lie in the file's order there, and in the folder's in a folder: the
    same types, and blocks that differ where sums in another order tipped a code.
    """
    made(wide, tmp_path / "keep.gguf", "keep")
    folder = made(wide, tmp_path / "a.gguf", calibrate=IDS)
    assert made(tmp_path / "keep.gguf", tmp_path / "b.gguf", calibrate=IDS) == folder
    a, b = GgufFile(tmp_path / "a.gguf"), GgufFile(tmp_path / "b.gguf")
    name = "blk.0.ssm_out.weight"
    assert np.mean(np.asarray(a[name]) == np.asarray(b[name])) > 0.9


def test_moments_in_groups_give_the_same_file(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not all moments are held at once, the text is read again for the next layers."""
    whole = made(wide, tmp_path / "a.gguf", calibrate=IDS)
    monkeypatch.setattr("qwen35.calibrated.MEMORY", 3 << 20)
    groups, stages = 0, []
    plain = calibrated._groups

    def grouped(*args: Any) -> Any:
        nonlocal groups
        found = plain(*args)
        groups = len(found)
        return found

    monkeypatch.setattr("qwen35.calibrated._groups", grouped)

    def report(done: int, total: int, stage: str) -> None:
        assert 0 <= done <= total
        if done == total:
            stages.append(stage)

    assert made(wide, tmp_path / "b.gguf", calibrate=IDS, report=report) == whole
    assert groups > 2
    assert stages.count("calibrate") == 2 * groups  # once to choose types, once to fit
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def chats(seed: str, questions: int, *, held: bool) -> str:
    from conversations import conversations

    return conversations(Path(qwen35.__file__).parent / "tiny", seed, questions, held=held)


def test_tiny_on_questions_it_was_not_calibrated_on(tmp_path: Path) -> None:
    """A quarter of the KL of the recipe's own file, or less, in no more bytes."""
    text = chats("calibrate", 2, held=False)
    made("tiny", tmp_path / "plain.gguf")
    made("tiny", tmp_path / "calibrated.gguf", calibrate=text, special=True)
    assert tensor_bytes(tmp_path / "calibrated.gguf") <= tensor_bytes(tmp_path / "plain.gguf")
    files = {"plain": tmp_path / "plain.gguf", "calibrated": tmp_path / "calibrated.gguf"}
    with qwen35.load("tiny", context=256) as model:
        held: NDArray[np.int32] = np.array(
            model.tokenize(chats("held", 1, held=True), special=True), np.int32
        )
        found = fidelity.measure(files, model, held[:1024], context=256, progress=False)
    kl = {one.name: one.kl for one in found}
    assert kl["calibrated"] <= kl["plain"] / 4


# Refusals, and what is left behind


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty, expected at least 1,024 tokens"),
        ("hello", r"calibration text: \d tokens, expected at least 1,024"),
        (IDS[:1023], "1,023 tokens, expected at least 1,024"),
    ],
)
def test_texts_that_are_too_short(wide: Path, tmp_path: Path, text: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(wide, tmp_path / "x.gguf", calibrate=text)
    assert not list(tmp_path.iterdir())


def test_too_few_tokens_are_wanted(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1,000 tokens of the calibration text: expected at least"):
        made(wide, tmp_path / "x.gguf", calibrate=IDS, tokens=1000)


def test_not_both(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="imatrix and calibrate: expected one of them"):
        made(wide, tmp_path / "x.gguf", calibrate=IDS, imatrix=tmp_path / "y.gguf")


@pytest.mark.parametrize("stage", ["calibrate", "try types", "weigh matrices", "quantize"])
def test_stopped_in_any_stage_nothing_is_left(wide: Path, tmp_path: Path, stage: str) -> None:
    def report(done: int, total: int, now: str) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(wide, tmp_path / "x.gguf", calibrate=IDS, report=report)
    assert not list(tmp_path.iterdir())


# The command line


def test_command(wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, target = tmp_path / "text.txt", tmp_path / "x.gguf"
    text.write_text("The hen is in the hall on the line. <|im_end|>\n" * 40, encoding="utf-8")
    command = ["quantize", str(wide), str(target), "--calibrate", str(text), "--threads", "1"]
    assert cli.main([*command, "--special", "--tokens", "1024"]) == 0
    assert "bits per weight" in capsys.readouterr().out
    with qwen35.load(target) as model:
        assert np.isfinite(model.logits(IDS[:20])).all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--imatrix", "a.gguf"], "--imatrix and --calibrate: expected one of them"),
        ([], "calibration text: it is empty, expected at least 1,024 tokens"),
    ],
)
def test_command_refuses(
    wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("")
    command = ["quantize", str(wide), str(tmp_path / "x.gguf"), "--calibrate", str(text)]
    assert cli.main(command + more) != 0
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.gguf").exists()


def test_command_about_special_tokens(
    wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["quantize", str(wide), str(tmp_path / "x.gguf"), "--special"]) != 0
    assert "--special and --tokens: belong to --calibrate TEXT" in capsys.readouterr().err
