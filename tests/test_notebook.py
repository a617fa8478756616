"""Oracle: an HTML parser and literals for what is shown; for examples, that they run and print.

QWEN35_UPDATE=1 python -m pytest tests/test_notebook.py -k notebook_runs    # writes outputs anew
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_core import after, fake_model

from qwen35 import _core, progress
from qwen35.results import Generation, ToolCall, Usage

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = Path(__file__).parent.parent / "qwen35" / "tiny" / "model.safetensors"
EVIL = "<script>alert('x')</script> & \"q\" </div>"


class Page(HTMLParser):
    """Tags that are balanced, the text, and the tooltips."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"unclosed {self.open}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.seen.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]
        assert all(name in ("style", "title") for name, _ in attrs), attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def model(small: Path) -> Iterator[Any]:
    with fake_model(small, context=500) as model:
        yield model


def test_a_model_shows_its_layers_and_memory(model: Any) -> None:
    page = Page(model._repr_html_())
    layers = [title for title in page.titles if title.startswith("layer ")]
    assert [title.partition(", ")[0] for title in layers] == [
        "layer 0: DeltaNet",
        "layer 1: DeltaNet",
        "layer 2: DeltaNet",
        "layer 3: attention",
    ]
    for part in ("small", "395,316", "threads", "500 tokens", _core.cpu()["isa"]):
        assert part in page.text
    assert {"weights: 1.0 KiB", "K/V: 7.8 KiB"} <= set(page.titles)
    model.close()
    assert "closed" in Page(model._repr_html_()).text


def test_an_answer_shows_its_parts(model: Any) -> None:
    result = Generation(
        text="the answer",
        reasoning="why",
        tool_calls=[ToolCall("add", {"a": 2}, "call_0")],
        finish_reason="tool_calls",
        usage=Usage(prompt_tokens=1200, cached_tokens=1000, completion_tokens=5),
    )
    page = Page(result._repr_html_())
    assert page.seen.count("details") == 1
    for part in ("the answer", "why", "add", '"a": 2', "1,200 (1,000 cached) + 5 tokens"):
        assert part in page.text


def test_everything_from_outside_is_escaped(model: Any) -> None:
    call = ToolCall(EVIL, {EVIL: EVIL}, EVIL)
    pages = [
        Page(Generation(text=EVIL, reasoning=EVIL, tool_calls=[call])._repr_html_()),
        Page(model.prompt(EVIL)._repr_html_()),
    ]
    model.name = EVIL
    pages.append(Page(model._repr_html_()))
    for page in pages:
        assert "script" not in page.seen
        assert "<script>alert('x')</script>" in page.text


def test_a_prompt_shows_tokens_and_ids(model: Any) -> None:
    prompt = model.prompt([{"role": "user", "content": "hi"}])
    page = Page(prompt._repr_html_())
    assert page.titles == [str(token) for token in prompt.ids]
    assert f"{len(prompt)} tokens, chat, thinking" in page.text
    long = Page(model.prompt([5] * 2000)._repr_html_())
    assert len(long.titles) == 400 and "1,600 more" in long.text


def test_a_stream_shows_how_far_it_is(model: Any) -> None:
    ids = model.tokenize("the answer")
    model._core.script = after(model.tokenize("ask"), ids, 267)
    stream = model.generate("ask")
    assert "running" in Page(stream._repr_html_()).text
    next(stream)
    assert stream._record.reason is None
    stream.result()
    assert "the answer" in Page(stream._repr_html_()).text


# ---- progress ------------------------------------------------------------------------------------


def test_no_bar_where_nobody_watches(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert not progress.is_interactive()
    assert progress.prefill_progress(None)[0] is None
    model.generate([5] * 400, max_tokens=1).result()
    assert capsys.readouterr() == ("", "")


def test_a_long_prompt_draws_a_bar_and_removes_it(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    model._progress = True
    model.generate([5] * 400, max_tokens=1).result()
    out, err = capsys.readouterr()
    assert out == "" and "prompt" in err and "/400" in err


def test_a_short_prompt_draws_none(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model._progress = True
    model.generate([5] * 400, max_tokens=1).result()
    assert capsys.readouterr() == ("", "")


# ---- examples ------------------------------------------------------------------------------------

needs_tiny = pytest.mark.skipif(not TINY.exists(), reason="this build holds no embedded model")


@needs_tiny
@pytest.mark.parametrize("name", ["ask", "async_stream", "fidelity", "sessions", "tools"])
def test_examples_run(name: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@needs_tiny
@pytest.mark.parametrize(("name", "largest"), [("quickstart", 100_000), ("seeing", 200_000)])
def test_notebook_runs_and_holds_small_outputs(
    name: str, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("nbformat", "nbclient", "ipykernel"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is missing: pip install 'qwen35[notebook]'")
    import nbformat
    from nbclient import NotebookClient

    path = EXAMPLES / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    stored = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not os.environ.get("QWEN35_UPDATE"):
        assert all(cell.execution_count for cell in stored), "it is kept executed"
    assert path.stat().st_size < largest
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    here = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=here).execute()
    for cell in stored:
        assert all(output.output_type != "error" for output in cell.outputs)
    shown = str([output for cell in stored for output in cell.outputs])
    assert {"quickstart": "Model 'tiny'", "seeing": "data:image/png;base64"}[name] in shown
    if os.environ.get("QWEN35_UPDATE"):
        for cell in notebook.cells:
            cell.metadata.clear()
        nbformat.write(notebook, path)
