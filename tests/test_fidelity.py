"""Oracle: KL and perplexity in closed form, NumPy in float64 on logits made up here, literals for
what is printed; end to end what must hold of any model (nothing differs from itself, fewer bits
differ more).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from gguf_writer import text_metadata, write_gguf
from test_gguf_checkpoint import written

import qwen35
from qwen35 import fidelity
from qwen35.fidelity import Fidelities, Fidelity

WINDOW = 10  # scored: what follows positions 5 to 8
WIDE = {"hidden_size": 256, "intermediate_size": 512}
ROOT = "model.language_model."


@pytest.fixture
def pair(small: Path) -> Iterator[tuple[Any, Any]]:
    """A reference and a model whose logits a test may replace."""
    options: dict[str, Any] = {"context": 64, "threads": 1}
    with qwen35.load(small, **options) as one, qwen35.load(small, **options) as two:
        yield one, two


def made(name: str = "m", **changes: Any) -> Fidelity:
    numbers = Fidelity(
        name=name,
        reference="r",
        type="q8_0",
        perplexity=8.0,
        perplexity_error=0.5,
        kl=0.25,
        kl_error=0.0125,
        kl_p95=0.5,
        kl_max=2.0,
        agreement=0.875,
        parameters=1000,
        weights_bytes=1063,
        memory_bytes=2000,
        tokens_per_s=1234.5,
        threads=1,
        context=512,
        scored=255,
        same_size=True,
    )
    return replace(numbers, **changes)


# ---- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 4, 1 << 22])
def test_kl_in_closed_form(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """p = (1/4, 3/4), q = (1/2, 1/2); a constant added to logits changes nothing; nor do pieces."""
    monkeypatch.setattr(fidelity, "PIECE", piece)
    reference = np.array([[0, math.log(3)], [100, 100 + math.log(3)], [1, 1]])
    model = np.array([[7.0, 7.0], [0.0, 0.0], [math.log(9), 0.0]])
    got = fidelity.compare(reference, model, np.array([0, 1, 1]))
    half = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    tenth = 0.5 * math.log(5) + 0.5 * math.log(5 / 9)  # (1/2, 1/2) against (9/10, 1/10)
    assert got.kl == pytest.approx([half, half, tenth], rel=1e-12)
    assert got.loss == pytest.approx([math.log(2), math.log(2), math.log(10)], rel=1e-12)
    assert got.agree.tolist() == [False, False, True]  # the first of equals


def test_kl_survives_probabilities_of_zero() -> None:
    got = fidelity.compare(np.array([[0.0, 2000.0]]), np.array([[0.0, 0.0]]), np.array([1]))
    assert got.kl == pytest.approx([math.log(2)], rel=1e-12)


def test_kl_of_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the same T and V"):
        fidelity.compare(np.zeros((2, 3)), np.zeros((2, 4)), np.zeros(2, int))


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, model = pair
    rows = model.config.text.vocab_size
    monkeypatch.setattr(model, "logits", lambda ids: np.zeros((len(ids), rows), np.float32))
    (got,) = fidelity.measure(model, reference, list(range(25)), context=WINDOW)
    assert got.perplexity == pytest.approx(rows, rel=1e-12)
    assert got.perplexity_error == pytest.approx(0, abs=1e-9)
    assert got.scored == 8


def test_the_second_half_of_whole_windows_is_scored(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are sure of the right token there, and of a wrong one everywhere else."""
    reference, model = pair
    rows, seen = model.config.text.vocab_size, []
    text = (np.arange(37) * 3) % rows

    def logits(ids: Any) -> Any:
        seen.append(ids.tolist())
        out = np.zeros((len(ids), rows), np.float32)
        out[:, rows - 1] = 60
        for position in (5, 6, 7, 8):
            out[position, rows - 1], out[position, ids[position + 1]] = 0, 60
        return out

    monkeypatch.setattr(model, "logits", logits)
    (got,) = fidelity.measure([model], reference, text, context=WINDOW)
    assert got.perplexity == pytest.approx(1, abs=1e-9)
    assert seen == [text[:10].tolist(), text[10:20].tolist(), text[20:30].tolist()]
    assert (got.scored, got.context) == (12, WINDOW)
    seen.clear()
    fidelity.measure([model], reference, text, context=WINDOW, tokens=29)
    assert len(seen) == 2


def test_numbers_are_numpys_over_all_windows(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, model = pair
    rows, text = model.config.text.vocab_size, np.arange(50) % 31
    rng = np.random.default_rng(5)
    wanted = rng.standard_normal((5, WINDOW, rows)).astype(np.float32) * 3
    got = wanted + rng.standard_normal(wanted.shape).astype(np.float32)
    for own, all_of in ((reference, wanted), (model, got)):
        windows = iter(all_of)
        monkeypatch.setattr(own, "logits", lambda ids, windows=windows: next(windows))
    p, q = (np.exp(x[:, 5:9].reshape(20, rows).astype(np.float64)) for x in (wanted, got))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    kl = (p * np.log(p / q)).sum(1)
    loss = -np.log(q[np.arange(20), text.reshape(5, WINDOW)[:, 6:].ravel()])
    (found,) = fidelity.measure([model], reference, text, context=WINDOW)
    assert found.kl == pytest.approx(kl.mean(), rel=1e-9)
    assert found.kl_error == pytest.approx(kl.std(ddof=1) / math.sqrt(20), rel=1e-9)
    assert found.kl_p95 == pytest.approx(np.percentile(kl, 95), rel=1e-9)
    assert found.kl_max == pytest.approx(kl.max(), rel=1e-9)
    assert found.perplexity == pytest.approx(math.exp(loss.mean()), rel=1e-9)
    assert found.agreement == (p.argmax(1) == q.argmax(1)).mean()


def test_bits_per_weight() -> None:
    assert made(parameters=256, weights_bytes=144).bits_per_weight == 4.5


# ---- what to choose ------------------------------------------------------------------------------

LARGE = made("large", kl=0.01, memory_bytes=3000)
MIDDLE = made("middle", kl=0.02, memory_bytes=2000)
LITTLE = made("little", kl=0.3, memory_bytes=1000)


@pytest.mark.parametrize(
    ("budget", "name"),
    [(9999, "large"), (3000, "large"), (2999, "middle"), (1000, "little"), (1e12, "large")],
)
def test_choose_takes_the_lowest_kl_that_fits(budget: float, name: str) -> None:
    assert fidelity.choose([MIDDLE, LITTLE, LARGE], budget).name == name


def test_choose_takes_the_smaller_of_equals() -> None:
    assert fidelity.choose([MIDDLE, replace(LITTLE, kl=0.02)], 9999).name == "little"


def test_choose_compares_sizes_by_perplexity() -> None:
    """More parameters at fewer bits beat fewer at more here, though KL says otherwise."""
    more = made("2B q4_k_m", perplexity=9.0, kl=0.3, memory_bytes=900)
    fewer = made("0.8B q8_0", perplexity=12.0, kl=0.01, memory_bytes=850, same_size=False)
    assert fidelity.choose([fewer, more], 1000) is more
    assert fidelity.choose([fewer, more], 870) is fewer


def test_choose_says_what_would_fit() -> None:
    with pytest.raises(ValueError, match="nothing fits 999 bytes: the smallest, little, takes 1,0"):
        fidelity.choose([LARGE, LITTLE], 999)
    with pytest.raises(ValueError, match="at least one"):
        fidelity.choose([], 999)


# ---- what is shown -------------------------------------------------------------------------------


def test_table_and_html() -> None:
    results = Fidelities([made("a"), made("<b>", same_size=False, kl=0.0, kl_error=0.0)])
    lines = str(results).splitlines()
    assert lines[0].split() == (
        "model mostly weights bits perplexity mean KL 95 % max KL same top tokens/s".split()
    )
    assert lines[1].split() == (
        "a q8_0 0.0 MiB 8.50 8.0000 ±0.5000 0.2500 ±0.0125 0.5000 2.0000 87.50 % 1,234.5".split()
    )
    assert len(lines[1]) == len(lines[2]) and "*0 ±0" in lines[2]
    assert lines[3].startswith("255 tokens scored") and lines[4].startswith("* another number")
    shown = results._repr_html_()
    assert "&lt;b&gt;" in shown and "<b>" not in shown


def test_json_holds_every_number() -> None:
    found = json.loads(fidelity.to_json([made("a")]))
    assert set(found) == {"version", "isa", "results"}
    assert found["results"] == [{**made("a").to_dict(), "bits_per_weight": 8.504}]


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = [made("a"), made("zero", kl=0.0), made("other", same_size=False)]
    figure = fidelity.plot(results, tmp_path / "kl.png")
    assert (tmp_path / "kl.png").read_bytes().startswith(b"\x89PNG")
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["a", "zero (KL 0)", "other"]


def test_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'qwen35\[eval\]'"):
        fidelity.plot([made()])


# ---- errors --------------------------------------------------------------------------------------


def test_wrong_arguments(pair: tuple[Any, Any], tmp_path: Path) -> None:
    reference, model = pair
    ids = list(range(30))
    for error, match, given in (
        (ValueError, "text: 9 tokens, and one window takes context=10", {"text": ids[:9]}),
        (ValueError, "text: 9 tokens", {"tokens": 9}),
        (ValueError, "context=2: expected at least 3", {"context": 2}),
        (TypeError, "context=1.5: expected an integer", {"context": 1.5}),
        (ValueError, "loaded for 64 tokens and a window takes context=65", {"context": 65}),
        (ValueError, r"text\[1\]: token id 99999999 is outside", {"text": [1, 99999999]}),
        (TypeError, "text: expected text or a sequence of token ids", {"text": 5}),
        (TypeError, "reference: expected a loaded model", {"reference": None}),
        (TypeError, r"models\['a'\]: expected a loaded model", {"models": {"a": 3}}),
        (ValueError, "models: expected at least one", {"models": []}),
        (FileNotFoundError, "none", {"reference": str(tmp_path / "none")}),
    ):
        options = {"models": [model], "reference": reference, "text": ids, "context": WINDOW}
        with pytest.raises(error, match=match):
            fidelity.measure(**{**options, **given})


def test_other_vocabularies(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = pair
    with pytest.raises(ValueError, match="vocabularies differ: tiny has 2,112 rows"):
        fidelity.measure("tiny", reference, list(range(30)), context=WINDOW)
    own = model.tokenize
    monkeypatch.setattr(model, "tokenize", lambda text, special: [*own(text)[:4], 7])
    with pytest.raises(ValueError, match="into other tokens, from number 4 on"):
        fidelity.measure({"m": model}, reference, "the other one of them" * 9, context=WINDOW)


def test_logits_that_are_not_finite(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = pair
    broken = reference.logits(list(range(WINDOW)))
    broken[6, 3] = np.nan
    monkeypatch.setattr(model, "logits", lambda ids: broken)
    with pytest.raises(ValueError, match="m: the logit of token 3 after 7 tokens is nan"):
        fidelity.measure({"m": model}, reference, list(range(30)), context=WINDOW)


# ---- errors of weights ---------------------------------------------------------------------------


def test_layer_errors_are_those_of_the_decoded_numbers(tmp_path: Path) -> None:
    path = checkpoints.write_checkpoint(tmp_path / "small", mtp=False, vision=False, **WIDE)
    options: dict[str, Any] = {"mtp": False, "context": 64, "threads": 1}
    with (
        qwen35.load(path, **options) as reference,
        qwen35.load(path, quantize="q4_0", **options) as model,
    ):
        found = fidelity.layer_errors(model, reference)
        assert {m.type for m in found.matrices} == {"q4_0", "q8_0"}
        errors, norms = {}, {}
        for m in found.matrices:
            want = np.asarray(reference.tensors[m.name], np.float64)
            error = np.square(np.asarray(model.tensors[m.name], np.float64) - want).sum()
            errors[m.name], norms[m.name] = error, np.square(want).sum()
            assert m.error == pytest.approx(error / np.square(want).sum(), rel=1e-9)
        own = [n for n in errors if n.startswith(f"{ROOT}layers.1.")]
        wanted = sum(errors[n] for n in own) / sum(norms[n] for n in own)
        assert found.layers[1] == pytest.approx(wanted, rel=1e-9)
        own = [n for n in errors if n.endswith("mlp.up_proj.weight")]
        wanted = sum(errors[n] for n in own) / sum(norms[n] for n in own)
        assert len(own) == 4 and found.kinds["mlp.up_proj"] == pytest.approx(wanted, rel=1e-9)
        assert fidelity.layer_errors(reference, reference).matrices == ()
        with qwen35.load("tiny", quantize="q4_0", mtp=False, threads=1) as other:
            with pytest.raises(ValueError, match="expected a model quantized from the reference"):
                fidelity.layer_errors(other, reference)


def test_gguf_files_by_path(tmp_path: Path) -> None:
    """Another order of value heads would be an error of about 2; 8 bits are 2e-5 off."""
    paths = {
        kind: write_gguf(tmp_path / f"{kind}.gguf", text_metadata(), written(kind))
        for kind in ("F32", "Q8_0")
    }
    ids = list(np.random.default_rng(1).integers(0, 24, 40))
    (got,) = fidelity.measure(str(paths["Q8_0"]), paths["F32"], ids, context=20, threads=1)
    assert (got.name, got.type, got.same_size) == ("Q8_0", "q8_0", True)
    assert (got.kl > 0, got.scored) == (True, 18)
    with (
        qwen35.load(paths["F32"], mtp=False) as reference,
        qwen35.load(paths["Q8_0"], mtp=False) as model,
    ):
        errors = fidelity.layer_errors(model, reference)
    assert len(errors.layers) == 4
    assert all(0 < matrix.error < 1e-4 for matrix in errors.matrices)


# ---- end to end ----------------------------------------------------------------------------------


TEXT = "What is 23 + 45? The red box holds a key, the blue box holds a coin.\n" * 12


def test_fewer_bits_differ_more_and_nothing_differs_from_itself() -> None:
    options: dict[str, Any] = {"context": 64, "threads": 1, "mtp": False}
    with (
        qwen35.load("tiny", **options) as reference,
        qwen35.load("tiny", **options) as again,
        qwen35.load("tiny", quantize="q8_0", **options) as eight,
        qwen35.load("tiny", quantize="q4_0", **options) as four,
    ):
        steps: list[tuple[int, int]] = []
        results = fidelity.measure(
            [reference, again, eight, four],
            reference,
            TEXT,
            context=64,
            tokens=200,
            progress=lambda done, total: steps.append((done, total)),
        )
        assert not again._gate.closed
    same, twin, eight_bits, four_bits = results
    assert [r.name for r in results] == [
        "tiny bfloat16",
        "tiny bfloat16 #2",
        "tiny q8_0",
        "tiny q4_0",
    ]
    for one in (same, twin):
        assert (one.kl, one.kl_max, one.agreement) == (0, 0, 1)
    assert 0 < eight_bits.kl < four_bits.kl
    assert eight_bits.agreement >= four_bits.agreement
    assert same.weights_bytes > eight_bits.weights_bytes > four_bits.weights_bytes
    assert same.bits_per_weight == pytest.approx(16) and 4.5 <= four_bits.bits_per_weight < 5
    assert all(r.tokens_per_s > 0 and r.scored == 3 * 31 and r.same_size for r in results)
    assert steps == [(n, 12) for n in range(1, 13)]


def test_special_tokens_only_when_asked() -> None:
    chat = "<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n" * 20
    one, two = (
        fidelity.measure("tiny", "tiny", chat, context=32, threads=1, special=special)[0]
        for special in (False, True)
    )
    assert two.scored < one.scored
