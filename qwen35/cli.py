"""The `qwen35` command: arguments in, exit status out. Each subcommand is a function of its own
file.

0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted, 141 nobody reads any more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from . import __version__
from .dtypes import DTYPES, KV_DTYPES
from .errors import Error

COMMANDS = {
    "run": ("cli_run", "answer one prompt"),
    "chat": ("cli_chat", "talk in turns"),
    "info": ("cli_info", "what a model is and needs, from its headers alone"),
    "quantize": ("cli_quantize", "make a GGUF file of a model"),
    "bench": ("cli_bench", "measure tokens per second"),
    "eval": ("cli_eval", "how close quantized models are to their reference"),
    "doctor": ("cli_doctor", "what this machine and installation offer"),
}
EXPECTED = (Error, OSError, ValueError, TypeError, MemoryError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = build_parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    """The status of a subcommand, errors as one line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character
    try:
        status = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _silence_stdout()
        return 141
    except EXPECTED as error:
        if args.traceback:
            raise
        print(f"qwen35: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return int(status or 0)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="qwen35",
        description="Qwen3.5 on this computer's processor.",
        epilog="qwen35 COMMAND --help tells more. The model 'tiny' is inside the package.",
    )
    parser.add_argument("--version", action="version", version=f"qwen35 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        add = _load(module)
        formatter = argparse.RawDescriptionHelpFormatter
        add(commands.add_parser(name, help=summary, formatter_class=formatter, **_texts(module)))
    return parser


def _silence_stdout() -> None:
    """Python flushes stdout when it ends; let that find an open file."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _load(module: str) -> Callable[[argparse.ArgumentParser], None]:
    from importlib import import_module

    add: Callable[[argparse.ArgumentParser], None]
    add = import_module(f".{module}", __package__).add_arguments
    return add


def _texts(module: str) -> dict[str, Any]:
    """Description and examples of a subcommand: the docstring of its file, from the second part
    on.
    """
    doc = sys.modules[f"{__package__}.{module}"].__doc__ or ""
    summary, _, examples = doc.partition("\n\n")
    return {"description": summary, "epilog": examples.strip("\n")}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What every subcommand that loads a model takes."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default="tiny", help="'tiny' (default), a folder, a GGUF file, or a hub id"
    )
    group.add_argument("--mmproj", help="vision file of a GGUF file; default: one beside it")
    group.add_argument("--revision", help="branch, tag or commit of a hub id")
    group.add_argument("--context", type=int, help="tokens a conversation can hold")
    group.add_argument("--threads", type=int, help="threads that compute")
    group.add_argument("--dtype", default="auto", choices=DTYPES)
    group.add_argument("--kv-dtype", default="auto", choices=KV_DTYPES, help="of the K/V cache")
    group.add_argument("--offline", action="store_true", help="use the hub's cache alone")
    add_traceback(parser)


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """For those who look for a bug in this package."""
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")


def load_model(args: argparse.Namespace, **changes: Any) -> Any:
    """The model the arguments name."""
    from .loading import load

    options = {
        "revision": args.revision,
        "mmproj": args.mmproj,
        "context": args.context,
        "threads": args.threads,
        "dtype": args.dtype,
        "kv_dtype": args.kv_dtype,
        "local_files_only": args.offline,
    }
    return load(args.model, **{**options, **changes})


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Sampling and thinking, for `run` and `chat`."""
    group = parser.add_argument_group("answer")
    group.add_argument("--system", metavar="TEXT", help="a system message")
    group.add_argument("--max-tokens", type=int, metavar="N", help="tokens at most")
    for name in ("temperature", "top-p", "min-p"):
        group.add_argument(f"--{name}", type=float, metavar="X")
    group.add_argument("--top-k", type=int, metavar="N")
    for name in ("presence", "frequency", "repetition"):
        group.add_argument(f"--{name}-penalty", type=float, metavar="X")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed, the same answer")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end here (repeatable)")
    think = group.add_mutually_exclusive_group()
    think.add_argument("--think", action="store_true", default=None, help="reason first")
    think.add_argument("--no-think", dest="think", action="store_false", help="answer at once")
    group.add_argument("--thinking-budget", type=int, metavar="N", help="tokens of reasoning")
    group.add_argument(
        "--show-thinking", action="store_true", help="show reasoning even off a terminal"
    )


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of SamplingParams that were given."""
    names = "max_tokens temperature top_p min_p top_k presence_penalty frequency_penalty"
    names += " repetition_penalty seed stop"
    return {n: getattr(args, n) for n in names.split() if getattr(args, n) is not None}


class Screen:
    """Answers to stdout; reasoning to stderr, dimmed, where somebody watches or asked for it."""

    def __init__(self, *, show_thinking: bool) -> None:
        terminal = sys.stderr.isatty()
        self._thinking = show_thinking or terminal
        colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._dim, self._plain = ("\x1b[2m", "\x1b[0m") if colour else ("", "")
        self._in_reasoning = False
        self._open_line = False

    def show(self, token: Any) -> None:
        """One token of an answer."""
        if token.kind == "reasoning" and self._thinking and token.text:
            start = "" if self._in_reasoning else self._dim
            self._in_reasoning = True
            print(start + token.text, end="", flush=True, file=sys.stderr)
        elif token.kind == "text" and token.text:
            self._leave_reasoning()
            print(token.text, end="", flush=True)
            self._open_line = not token.text.endswith("\n")

    def end(self) -> None:
        """The answer is over: the next output starts on a line of its own."""
        self._leave_reasoning()
        if self._open_line:
            print(flush=True)
        self._open_line = False

    def _leave_reasoning(self) -> None:
        if self._in_reasoning:
            print(self._plain, file=sys.stderr, flush=True)
        self._in_reasoning = False


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"qwen35: warning: {message}", file=sys.stderr)
