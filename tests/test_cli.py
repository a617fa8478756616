"""Oracle: literals: what each command prints where, and its exit status."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from fake_core import after, fake_model

from qwen35 import cli

END = checkpoints.TOKEN_IDS["<|im_end|>"]
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def model(small: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The model that every command loads: scripted."""
    with fake_model(small, context=500) as model:
        monkeypatch.setattr(cli, "load_model", lambda args, **changes: model)
        for name in ("cli_run", "cli_chat", "cli_bench"):
            monkeypatch.setattr(f"qwen35.{name}.load_model", lambda args, **changes: model)
        yield model


def script(model: Any, messages: Any, answer: str, **options: Any) -> None:
    ids = model.tokenize(answer, special=True)
    start = model.prompt(messages, **options).ids.tolist()
    model._core.script = after(start, ids, END)


def qwen35(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwen35", *args]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, **options
    )


# ---- usage and errors ----------------------------------------------------------------------------


def test_help_lists_the_commands_and_every_command_has_examples() -> None:
    done = qwen35("--help")
    assert done.returncode == 0
    for command in ("run", "chat", "info", "bench", "eval", "doctor"):
        assert command in done.stdout
        detail = cli.build_parser()
        with pytest.raises(SystemExit) as exit_:
            detail.parse_args([command, "--help"])
        assert exit_.value.code == 0


@pytest.mark.parametrize("command", ["run", "chat", "info", "bench", "eval", "doctor"])
def test_help_of_a_command_shows_how_it_is_used(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert "examples:\n  " in out and f"qwen35 {command}" in out.partition("examples:")[2]


@pytest.mark.parametrize(
    "args",
    [[], ["bogus"], ["run"], ["run", "x", "--temprature", "1"], ["run", "x", "--top-k", "a"]],
)
def test_wrong_usage_is_status_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(args)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("qwen35")


def test_errors_are_one_line_and_status_1(tmp_path: Path) -> None:
    for args in (
        ["run", "--model", str(tmp_path / "none"), "hi"],
        ["info", str(tmp_path)],
        ["run", "--model", str(tmp_path), "--tools", str(tmp_path / "none.json"), "hi"],
    ):
        done = qwen35(*args)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("qwen35: ") and done.stderr.count("\n") == 1


def test_python_dash_m_and_version() -> None:
    import qwen35 as package

    assert qwen35("--version").stdout == f"qwen35 {package.__version__}\n"


# ---- run -----------------------------------------------------------------------------------------


def test_run_prints_the_text_and_nothing_else(
    model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    script(model, HI, "why</think>\n\nthe answer")
    assert cli.main(["run", "hi"]) == 0
    assert capsys.readouterr() == ("the answer\n", "")


def test_run_shows_reasoning_on_stderr_when_asked(
    model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    script(model, HI, "why</think>\n\nthe answer")
    assert cli.main(["run", "hi", "--show-thinking"]) == 0
    assert capsys.readouterr() == ("the answer\n", "why\n")


@pytest.mark.parametrize(("no_color", "dim"), [("", "\x1b[2m"), ("1", "")])
def test_reasoning_is_dimmed_on_a_terminal_unless_no_color(
    model: Any, monkeypatch: pytest.MonkeyPatch, no_color: str, dim: str
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    script(model, HI, "why</think>\n\nthe answer")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", err := Terminal())
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    assert cli.main(["run", "hi"]) == 0
    assert out.getvalue() == "the answer\n"
    assert err.getvalue() == f"{dim}why{dim and chr(27) + '[0m'}\n"


def test_run_json_is_one_object(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script(model, HI, "why</think>\n\nthe answer")
    length = len(model.prompt(HI))
    assert cli.main(["run", "hi", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["text"], result["reasoning"]) == ("the answer", "why")
    assert (result["finish_reason"], result["tool_calls"]) == ("stop", [])
    assert result["usage"]["prompt_tokens"] == length


def test_run_passes_its_flags_on(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    chat = model.chat

    def spy(messages: Any, **given: Any) -> Any:
        seen.update(given, messages=messages)
        return chat(messages, **given)

    monkeypatch.setattr(model, "chat", spy)
    flags = "--system Be-brief --max-tokens 3 --temperature 0.5 --top-p 0.9 --top-k 5 --min-p 0.1"
    flags += " --presence-penalty 0.1 --frequency-penalty 0.2 --repetition-penalty 1.1 --seed 7"
    flags += " --stop x --stop y --no-think --thinking-budget 9"
    assert cli.main(["run", "hi", *flags.split()]) == 0
    assert seen == {
        "messages": [{"role": "system", "content": "Be-brief"}, *HI],
        "tools": None,
        "enable_thinking": False,
        "thinking_budget": 9,
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "seed": 7,
        "stop": ["x", "y"],
    }


def test_run_raw_continues_text(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ids = model.tokenize(" upon a time")
    model._core.script = after(model.tokenize("Once"), ids, END)
    assert cli.main(["run", "--raw", "Once"]) == 0
    assert capsys.readouterr().out == " upon a time\n"
    assert cli.main(["run", "--raw", "Once", "--think"]) == 1
    assert "--think goes with the chat template" in capsys.readouterr().err


def test_run_prints_tool_calls(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    (tmp_path / "tools.json").write_text(json.dumps(tool))
    call = "<tool_call>\n<function=add>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>"
    script(model, HI, call, tools=[tool], enable_thinking=False)
    args = ["run", "hi", "--no-think", "--tools", str(tmp_path / "tools.json")]
    assert cli.main(args) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "add", "arguments": {"a": "x"}}


def test_run_reads_stdin(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(model, [{"role": "user", "content": "héllo"}], "</think>\n\nfine")
    stdin = io.TextIOWrapper(io.BytesIO("héllo".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert cli.main(["run", "-"]) == 0
    assert capsys.readouterr().out == "fine\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert cli.main(["run", "-"]) == 1
    assert capsys.readouterr().err == "qwen35: stdin: byte 2 is not UTF-8\n"


def test_run_interrupted_is_130_with_what_there_was(
    model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    script(model, HI, "</think>\n\nabcdef")
    play = model._core.script

    def interrupted(ids: list[int]) -> int:
        if ids[-2:] == model.tokenize("cd"):
            raise KeyboardInterrupt
        return play(ids)

    model._core.script = interrupted
    assert cli.main(["run", "hi"]) == 130
    assert capsys.readouterr().out == "abcd\n"


def test_warnings_are_one_line(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script(model, HI, "hmm" * 30)
    assert cli.main(["run", "hi", "--max-tokens", "3"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("qwen35: warning: the answer is empty: all 3 tokens")
    assert err.count("\n") == 1


def test_a_closed_pipe_is_quiet(small: Path) -> None:
    command = [sys.executable, "-m", "qwen35", "run", "--model", str(small), "--raw"]
    command += ["--max-tokens", "2000", "--temperature", "0", "the other"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


# ---- chat ----------------------------------------------------------------------------------------


def talk(model: Any, monkeypatch: pytest.MonkeyPatch, lines: str, *args: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return cli.main(["chat", *args])


def test_chat_keeps_the_conversation(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    chat = model.chat

    def spy(messages: Any, **given: Any) -> Any:
        seen.append((list(messages), given["enable_thinking"]))
        script(model, messages, "yes", enable_thinking=False)
        return chat(messages, **{**given, "enable_thinking": False})

    monkeypatch.setattr(model, "chat", spy)
    lines = "one\n\n/think on\ntwo\n/think auto\n/reset\nthree\n/bogus\n/exit\nfour\n"
    assert talk(model, monkeypatch, lines, "--no-think", "--system", "S") == 0
    system, reply = {"role": "system", "content": "S"}, {"role": "assistant", "content": "yes"}
    one, two, three = ({"role": "user", "content": word} for word in ("one", "two", "three"))
    assert seen == [
        ([system, one], False),
        ([system, one, reply, two], True),
        ([system, three], None),
    ]
    out = capsys.readouterr().out
    assert out.count("yes\n") == 3 and "/reset" in out and "starts anew" in out


def test_chat_interrupted_keeps_the_program_and_what_was_said(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(model, HI, "abcdef", enable_thinking=False)
    play = model._core.script

    def interrupted(ids: list[int]) -> int:
        if ids[-2:] == model.tokenize("cd"):
            raise KeyboardInterrupt
        return play(ids)

    model._core.script = interrupted
    assert talk(model, monkeypatch, "hi\n/help\n", "--no-think") == 0
    out, err = capsys.readouterr()
    assert out.startswith("abcd\n/help") and err == "[stopped]\n"


def test_chat_says_when_the_context_is_full(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model._core.script = lambda ids: END
    assert talk(model, monkeypatch, "long " * 300 + "\nhi\n", "--no-think") == 0
    out, err = capsys.readouterr()
    assert "holds 500" in err and "/reset" in err


# ---- info, bench, doctor -------------------------------------------------------------------------


def test_info_reads_headers(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors import safe_open

    with safe_open(small / "model.safetensors", "np") as file:
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    assert (
        cli.main(["info", str(small), "--context", "100", "--kv-dtype", "float16", "--json"]) == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == count
    assert facts["layers"]["DeltaNet"] == 3 and facts["layers"]["attention"] == 1
    assert facts["memory"]["K/V"] == 1 * 2 * 2 * 40 * 2 * 100
    assert cli.main(["info", str(small)]) == 0
    assert "DeltaNet heads" in capsys.readouterr().out
    assert cli.main(["info", str(small), "--context", "0"]) == 1


def test_info_plans_what_the_model_then_takes(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import qwen35 as package

    assert cli.main(["info", str(small), "--context", "100", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["memory"]
    with package.load(small, context=100) as model:
        memory = model.memory()
    assert (plan["K/V"], plan["state"]) == (memory["kv"], memory["state"])
    assert (plan["weights"], plan["total"]) == (memory["weights"], memory["total"])


def test_bench_measures(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON alone where no FILE is named; test_benchmarks.py has the rest."""
    args = ["bench", "--model", str(small), "--prompt", "20", "--decode", "5", "--runs", "2"]
    args += ["--depth", "0", "--batch", "2", "--image", "0"]
    assert cli.main([*args, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["image"] is None
    for name in ("prefill", "decode", "batch"):
        (row,) = figures[name]
        low, high = sorted(row["runs"])
        assert 0 < low <= row["tokens_per_s"] <= high
    assert cli.main([*args, "--runs", "0"]) == 1


def test_doctor_names_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    from qwen35 import _core

    assert cli.main(["doctor"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["isa"].startswith(_core.cpu()["isa"])
    for name in ("python", "threads", "memory", "blas", "numpy", "tokenizers", "tiny"):
        assert rows[name]
    assert "MISSING" not in str(rows)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_sigint_ends_run_with_130(small: Path) -> None:
    command = [sys.executable, "-m", "qwen35", "run", "--model", str(small), "--raw"]
    command += ["--max-tokens", "4000", "--temperature", "0", "the other"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        os.read(process.stdout.fileno(), 1)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b""
        assert process.wait(60) == 130
