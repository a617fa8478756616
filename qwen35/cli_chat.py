"""Talk in turns. Ctrl-C stops an answer and not the program, Ctrl-D leaves.

examples:
  qwen35 chat
  qwen35 chat --model Qwen/Qwen3.5-4B --system "Answer in Latin." --no-think
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .cli import Screen, add_model_arguments, add_sampling_arguments, load_model, sampling_fields
from .errors import ContextLengthError

HELP = """\
/help            this list
/reset           forget the conversation
/think [on|off|auto]   reason before answering, do not, or as the model's template says
/exit            leave (or Ctrl-D)
Ctrl-C stops an answer; what was said stays."""
THINK = {"on": True, "off": False, "auto": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qwen35 chat`."""
    add_sampling_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read turns until the end of input."""
    fields = sampling_fields(args)
    with load_model(args) as model:
        chat = Conversation(model, args, fields)
        if sys.stdin.isatty():
            _line_editing()
            print(f"{model.name}, context {model.context:,}. /help lists commands, Ctrl-D leaves.")
        while (line := _read_line()) is not None:
            if line.startswith("/"):
                if not chat.command(line):
                    break
            elif line:
                chat.answer(line)
    return 0


class Conversation:
    """The messages so far, and the switches that commands change."""

    def __init__(self, model: Any, args: argparse.Namespace, fields: dict[str, Any]) -> None:
        self._model, self._fields = model, fields
        self._think: bool | None = args.think
        self._budget: int | None = args.thinking_budget
        self._show_thinking: bool = args.show_thinking
        system = {"role": "system", "content": args.system}
        self._start = [] if args.system is None else [system]
        self.messages: list[dict[str, str]] = list(self._start)

    def command(self, line: str) -> bool:
        """Do what a line with a slash says; False to leave."""
        name, _, argument = line.partition(" ")
        if name in ("/exit", "/quit"):
            return False
        if name == "/reset":
            self.messages = list(self._start)
            print("The conversation starts anew.")
        elif name == "/think" and argument.strip() in ("", *THINK):
            self._think = THINK[argument.strip() or "on"]
            print(f"Thinking: {argument.strip() or 'on'}.")
        else:
            print(HELP)
        return True

    def answer(self, line: str) -> None:
        """Answer one user message and keep both; what does not fit is not kept."""
        messages = [*self.messages, {"role": "user", "content": line}]
        try:
            stream = self._model.chat(
                messages,
                enable_thinking=self._think,
                thinking_budget=self._budget,
                **self._fields,
            )
        except ContextLengthError as error:
            print(f"qwen35: {error} (/reset starts anew)", file=sys.stderr)
            return
        screen = Screen(show_thinking=self._show_thinking)
        try:
            for token in stream:
                screen.show(token)
        except KeyboardInterrupt:
            screen.end()
            print("[stopped]", file=sys.stderr)
        screen.end()
        result = stream.result()
        self.messages = [*messages, {"role": "assistant", "content": result.text}]


def _read_line() -> str | None:
    """A line of input, None at its end. Ctrl-C while typing drops the line."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            return input(prompt).strip()
        except EOFError:
            if prompt:
                print()
            return None
        except KeyboardInterrupt:
            if not prompt:
                raise
            print()


def _line_editing() -> None:
    """Arrow keys and history, where Python has them."""
    try:
        import readline
    except ImportError:
        return
    readline.set_history_length(1000)
