"""Oracle: literals: what the benchmarks make of figures, and that they run on tiny. No time is
asserted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qwen35
from qwen35 import _core, bench, bench_report, cli, cli_bench

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MACHINE = {"cpu": "x", "cores": 4, "threads": 2, "isa": "c", "commit": "abc", "read_GB_per_s": 10.0}
PEAKS = {"int8_Gop_per_s": 100.0, "float32_Gop_per_s": 50.0}


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str) -> Any:
    return importlib.import_module(name)


# ---- pure parts ----------------------------------------------------------------------------------


def test_rounds_alternate_and_medians_leave_out_what_is_unknown() -> None:
    harness = script("harness")
    assert [harness.in_turn("ab", i) for i in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]
    assert harness.median([3.0, None, 1.0, 2.0]) == 2.0
    assert harness.median([None]) is None
    assert harness.median([1.23456], digits=3) == 1.23
    assert harness.ratios([{"a": 6.0, "b": 2.0}, {"a": 1.0}], "a", "b") == [3.0]
    assert (harness.share(5.0, 10.0), harness.share(5.0, None)) == (0.5, None)


def test_tables_align() -> None:
    text = script("harness").table(("what", "x"), [("prefill", 1234.5), ("a", None), ("b", 0.5)])
    assert text.splitlines() == [
        "what         x",
        "prefill  1,234",
        "a            -",
        "b          0.5",
    ]


def test_files_that_lack_the_machine_are_refused(tmp_path: Path) -> None:
    harness = script("harness")
    good = harness.figures("batch", MACHINE, [{"batch": 1}])
    harness.write(tmp_path / "good.json", good)
    assert harness.read(tmp_path / "good.json") == good
    for bad in ([], {"rows": [1]}, {**good, "rows": []}, {**good, "machine": {"cpu": "x"}}):
        (tmp_path / "bad.json").write_text(json.dumps(bad))
        with pytest.raises(SystemExit, match="expected"):
            harness.read(tmp_path / "bad.json")


def test_limits_are_null_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = script("machine_limits")
    monkeypatch.setattr(limits, "program", lambda: None)
    monkeypatch.setattr("qwen35.bandwidth.read_bandwidth", lambda threads: 12.345e9)
    found = limits.limits(2)
    assert found == {"read_GB_per_s": 12.35, "float32_Gop_per_s": None, "int8_Gop_per_s": None}


# 10 MB of weights, 1 of state, 1 kB of K/V a token; 2 and 1 Mop in layers and head
COST = {"weight_bytes": 10**7, "state_bytes": 10**6, "kv_per_token": 1000}
COST |= {"layer_ops": 2 * 10**6, "head_ops": 10**6}


def peers(tmp_path: Path) -> dict[str, Any]:
    """A file of bench_peers.py from two rounds that were never measured."""
    module = script("bench_peers")
    options = argparse.Namespace(prompt=[500], decode_after=[], batch=[4], depth=[990], decode=20)
    tasks = module.tasks(options)
    names = [task["name"] for task in tasks]
    assert names == ["prefill 500", "batch of 4", "prefill 512 at 990", "decode at 990"]
    rates = [{"qwen35": 30.0, "llama.cpp": 10.0}, {"qwen35": 20.0, "llama.cpp": 20.0}]
    limits = {"read_GB_per_s": 1.0, "int8_Gop_per_s": 0.1}
    rounds = [{"limits": limits, "tokens_per_s": dict.fromkeys(names, rate)} for rate in rates]
    rows = [module.row_of(task, rounds, COST) for task in tasks]
    return script("harness").figures("peers", MACHINE | PEAKS, rows, file="m.gguf", rounds=rounds)


def test_ratios_are_those_of_rounds_and_shares_of_their_limits(tmp_path: Path) -> None:
    found = peers(tmp_path)
    prefill, batch, _, decode = found["rows"]
    assert (decode["qwen35"], decode["llama.cpp"]) == (25.0, 15.0)
    assert decode["ratios_llama.cpp"] == [3.0, 1.0] and decode["ratio_llama.cpp"] == 2.0
    assert decode["bytes_per_token"] == 12_000_000  # the middle of 990 to 1,010 tokens
    assert decode["share_qwen35"] == pytest.approx(25 * 0.012)
    assert prefill["ops_per_token"] == 2_002_000
    assert prefill["share_qwen35"] == pytest.approx(25 * 0.02002, rel=1e-3)
    assert "share_qwen35" not in batch
    assert "decode at 990" in script("bench_peers").shown(found)


def test_readme_block_is_written_once_and_again(tmp_path: Path) -> None:
    module = script("readme_table")
    growth = script("harness").figures(
        "growth",
        MACHINE,
        [{"phase": p, "depth": d, "ms": 0.5} for p in ("prefill", "decode") for d in (0, 1024)],
        file="m.gguf",
    )
    text = module.block([peers(tmp_path), growth], "r.png")
    assert "| m.gguf | decode at 990 | 25 | 15 | 2 | 30% |" in text
    assert (
        "| prefill | 0.5 | 0.5 |" in text and "](r.png)" in text and "int8 peak 100 Gop/s" in text
    )
    other = peers(tmp_path)
    other["machine"] = {**other["machine"], "isa": "avx2", "int8_Gop_per_s": 50.0}
    both = module.block([peers(tmp_path), other, growth], "r.png")
    assert both.count("| file |") == 2 and "int8 peak 50 Gop/s" in both  # a table for each
    once = module.rewritten("# x\n\n## Measured\n\nrest\n", text)
    assert module.rewritten(once, text) == once
    assert once.endswith("rest\n") and once.count(module.BEGIN) == 1
    for broken in ("# x\n", "## Measured\n\n<!-- speed -->\n"):
        with pytest.raises(SystemExit, match="speed"):
            module.rewritten(broken, text)


def test_roofline_has_kernels_and_both_engines(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    module = script("readme_table")
    row = {"type": "q8_0", "fine": False, "threads": 2, "decode_GB_per_s": 5.0}
    row |= {"decode_Gop_per_s": 10.0, "prefill_Gop_per_s": 60.0}
    kernels = script("harness").figures("kernels", MACHINE | PEAKS, [row, {**row, "threads": 1}])
    files = [kernels, peers(tmp_path)]
    shown = {(p["who"], p["phase"], p["x"], p["y"]) for p in module.points(files)}
    assert ("kernel", "decode", 2.0, 10.0) in shown and ("kernel", "prefill", 512.0, 60.0) in shown
    assert ("llama.cpp", "decode", 0.25, 0.045) in shown and len(shown) == 8
    module.draw(files, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


# ---- on tiny -------------------------------------------------------------------------------------


def test_timeline_is_at_its_depth_again_for_every_figure() -> None:
    with qwen35.load("tiny", context=200, threads=1) as model:
        timeline = bench.Timeline(model, 0, 150)
        for depth in (0, 70):
            timeline.deepen(depth)
            assert timeline.prefill_s(9) > 0 and timeline._core.position == depth + 9
            assert timeline.decode_s(3) > 0 and timeline._core.position == depth + 4
        parts = timeline.parts_s(5)
        assert timeline._core.position == 75
        assert set(parts) == {"DeltaNet", "attention", "MLP", "head"} and min(parts.values()) > 0
        ids = np.concatenate([bench.random_ids(model, 70, seed=70), bench.random_ids(model, 5)])
        assert (timeline._core.ids == ids).all()


def test_costs_of_tiny() -> None:
    """8 layers: attention 3 and 7; sizes are those of its config.json."""
    with qwen35.load("tiny", context=64, kv_dtype="float16") as model:
        cost, text = bench.costs(model), model.config.text
        tensors = model.tensors
        used = [n for n in tensors if ".visual." not in n and not n.startswith("mtp.")]
        nbytes = sum(tensors[n].nbytes for n in used)
        assert cost["head_ops"] == 2 * text.vocab_size * text.hidden_size
        assert nbytes <= cost["weight_bytes"] < 1.05 * nbytes  # and small vectors in float32
        assert bench.decode_bytes(cost, 100) - bench.decode_bytes(cost, 0) == 100 * 1024


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_k", "q6_k", "bf16", "f32"])
def test_kernel_benchmark_multiplies_what_it_says(name: str) -> None:
    """Its weights, as NumPy multiplies them; one time a repeat."""
    kernels = script("bench_kernels")
    w = kernels.weights(name, 64)
    x = np.random.default_rng(0).standard_normal((3, kernels.COLUMNS), np.float32)
    y = np.full((3, 64), np.nan, np.float32)
    seconds = _core.run_product(_core.cpu()["isa"], name, w, x, y, fine=True, repeat=4)
    assert len(seconds) == 4 and min(seconds) > 0
    numbers = [_core.decode_blocks(name, row.tobytes(), kernels.COLUMNS) for row in w]
    np.testing.assert_allclose(y, x @ np.array(numbers).T, atol=0.02)  # sums of 2,048: about 45
    with pytest.raises(ValueError, match="repeat=0"):
        _core.run_product(_core.cpu()["isa"], name, w, x, y, repeat=0)


def test_bench_command_writes_all_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen35.bandwidth.read_bandwidth", lambda threads: 10e9)
    args = ["bench", "tiny", "--prompt", "9,5,900", "--depth", "0,30", "--batch", "1,3"]
    args += ["--decode", "3", "--runs", "2", "--image", "64", "--max-tokens", "100"]
    assert cli.main([*args, "--json", str(tmp_path / "b.json")]) == 0
    out = capsys.readouterr().out
    assert "the machine reads 10.0 GB/s" in out and "3 together" in out and "64 x 64" in out
    found = json.loads((tmp_path / "b.json").read_text())
    assert [row["tokens"] for row in found["prefill"]] == [5, 9]  # 900 is beyond --max-tokens
    assert [row["depth"] for row in found["decode"]] == [0, 30]
    assert [row["size"] for row in found["batch"]] == [1, 3]
    more = found["decode"][1]["bytes_per_token"] - found["decode"][0]["bytes_per_token"]
    assert more == 30 * {"float16": 1024, "int16": 1056}[found["kv_dtype"]]
    assert found["load_s"] > 0 and found["threads"] >= 1 and found["read_GB_per_s"] == 10
    pytest.importorskip("matplotlib")
    bench_report.plot(found, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "args", [["--runs", "0"], ["--prompt", "0"], ["--batch", "65"], ["--json", "no/such/folder"]]
)
def test_bench_refuses_before_it_measures(args: list[str]) -> None:
    assert cli.main(["bench", "tiny", *args]) == 1


def test_full_is_more_than_quick() -> None:
    for name, quick in cli_bench.QUICK.items():
        assert len(str(cli_bench.FULL[name])) >= len(str(quick))


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("bench_*.py")))
def test_help_says_how(name: str) -> None:
    pytest.importorskip("llama_cpp") if name == "bench_four_bit" else None
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"python benchmarks/{name}.py" in done.stdout


def test_growth_runs_on_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("bench_growth")
    monkeypatch.setattr(module, "describe", lambda threads: MACHINE)
    options = argparse.Namespace(depth=[0, 40], prompt=5, decode=2, runs=1, threads=1)
    options.kv_dtype, options.model = "auto", "tiny"
    found = module.run(options)
    assert [(row["phase"], row["depth"]) for row in found["rows"]] == [
        ("prefill", 0),
        ("decode", 0),
        ("prefill", 40),
        ("decode", 40),
    ]
    assert "head" in found["rows"][1] and "head" not in found["rows"][0]


def test_qwen35_worker_answers(tmp_path: Path) -> None:
    worker = script("engines").Worker("qwen35", "tiny", threads=1, room=120)
    assert worker.about["kv_dtype"] == _core.cpu()["kv_dtype"]
    for what, how in (
        ("prefill_s", {"tokens": 5, "depth": 0}),
        ("decode_s", {"tokens": 2, "depth": 20}),
        ("batch_s", {"size": 3, "prompt": 4, "steps": 2}),
    ):
        assert worker.ask(what, **how) > 0
    worker.close()
    assert worker.process.returncode == 0
