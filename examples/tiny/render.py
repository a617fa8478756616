"""Examples as token ids, through the shipped template, and which tokens carry the loss."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tasks import Example
from tokenizers import Tokenizer


class Renderer:
    """Text and tokens of examples, through the very files that ship in `folder`."""

    def __init__(self, folder: Path):
        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        env.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)
        env.globals["raise_exception"] = fail
        self.template = env.from_string((folder / "chat_template.jinja").read_text())
        path = folder / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(path)) if path.exists() else None

    def text(self, example: Example) -> tuple[str, str]:
        """(prompt, completion); the completion ends with <|im_end|>."""
        prompt = self.template.render(
            messages=example.messages,
            tools=example.tools,
            add_generation_prompt=True,
            enable_thinking=example.thinking,
        )
        full = self.template.render(
            messages=[*example.messages, example.final()], tools=example.tools
        )
        assert full.startswith(prompt), (prompt, full)
        return prompt, full[len(prompt) :].removesuffix("\n")

    def tokens(self, example: Example) -> tuple[list[int], list[float], int]:
        """(ids, weight of each id as a target, prompt length). Earlier assistant turns carry loss
        too."""
        prompt, completion = self.text(example)
        head = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        tail = self.tokenizer.encode(completion, add_special_tokens=False).ids
        start, end = (self.tokenizer.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
        assistant = self.tokenizer.encode("assistant\n", add_special_tokens=False).ids
        weights, n, inside = [0.0] * len(head), len(assistant), False
        opening = (
            len(head) - 1 - head[::-1].index(start)
        )  # the generation prompt is given, not learned
        i = 0
        while i < opening:
            if head[i] == start:
                inside = head[i + 1 : i + 1 + n] == assistant
                i += 1 + n if inside else 1
                continue
            weights[i] = float(inside)
            inside = inside and head[i] != end
            i += 1
        return head + tail, weights + [1.0] * len(tail), len(head)


def fail(message: str) -> None:
    """The template's raise_exception."""
    raise ValueError(message)
