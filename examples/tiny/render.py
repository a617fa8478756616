"""Examples as token ids, through the shipped template, and which tokens carry the loss."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import patches
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tasks import Example, scenes
from tokenizers import Tokenizer

COLOR, SHAPE = "|".join(scenes.COLORS), "|".join(scenes.SHAPES)
NAMES = re.compile(rf"\b({COLOR}) ({SHAPE})\b|\bthe ({SHAPE})\b|\b({COLOR}) object\b")
PADS = re.compile("|".join(map(re.escape, patches.PADS.values())))


@dataclass
class Row:
    """An example as tokens."""

    ids: list[int]
    weights: list[float]  # of each id as a target; earlier assistant turns carry loss too
    start: int  # length of the prompt
    frames: list[patches.Frame]
    mentions: list[tuple[int, patches.Frame, scenes.Label]]  # tokens that end a thing's name


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
        self.folder = folder

    @functools.cached_property
    def sizes(self) -> dict[str, dict]:
        """The limits of images and videos in pixels."""
        names = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
        return {k: json.loads((self.folder / n).read_text())["size"] for k, n in names.items()}

    @functools.cached_property
    def pads(self) -> set[int]:
        """The ids that stand for a token of an image or a video."""
        return {self.tokenizer.token_to_id(p) for p in patches.PADS.values()}

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

    def tokens(self, example: Example) -> Row:
        """The example's ids, with a placeholder for every token of an image or video."""
        prompt, completion = self.text(example)
        prompt, frames = self.expand(prompt, example)
        for frame, labels in zip(frames, example.labels, strict=bool(example.labels)):
            frame.labels = labels
        parts = [self.tokenizer.encode(t, add_special_tokens=False) for t in (prompt, completion)]
        head, tail = (part.ids for part in parts)
        known, mentions = names(frames), []
        for text, part, start in zip((prompt, completion), parts, (0, len(head)), strict=True):
            for name in NAMES.finditer(text) if known else ():
                token = part.char_to_token(name.end() - 1)
                if token is not None and name[0] in known:
                    mentions.append((start + token, *known[name[0]]))
        weights = self.learned(head) + [1.0] * len(tail)
        return Row(head + tail, weights, len(head), frames, mentions)

    def expand(self, prompt: str, example: Example) -> tuple[str, list[patches.Frame]]:
        """A rendered prompt with a placeholder for every token of an image or video, and what the
        placeholders stand for."""
        if not PADS.search(prompt):
            return prompt, []
        seen = list(patches.parts(example.messages, self.sizes))
        texts = iter([text for text, _ in seen])
        return PADS.sub(lambda _: next(texts), prompt), [f for _, many in seen for f in many]

    def learned(self, head: list[int]) -> list[float]:
        """1 for the tokens of assistant turns in a prompt, but for its open last one."""
        start, end = (self.tokenizer.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
        assistant = self.tokenizer.encode("assistant\n", add_special_tokens=False).ids
        weights, n, inside, i = [0.0] * len(head), len(assistant), False, 0
        opening = len(head) - 1 - head[::-1].index(start)
        while i < opening:
            if head[i] == start:
                inside = head[i + 1 : i + 1 + n] == assistant
                i += 1 + n if inside else 1
                continue
            weights[i] = float(inside)
            inside = inside and head[i] != end
            i += 1
        return weights


def names(frames: list[patches.Frame]) -> dict[str, tuple[patches.Frame, scenes.Label]]:
    """How things of an image or of a video's frames can be named where only one is meant, and the
    last frame that shows it."""
    found: dict[str, list] = {}
    for frame in frames:
        here: dict[str, list] = {}
        for label in frame.labels:
            color, _, shape = label.name.partition(" ")
            for name in (label.name, f"the {shape}", f"{color} object") if shape else ():
                here.setdefault(name, []).append((frame, label))
        found |= here
    return {name: things[0] for name, things in found.items() if len(things) == 1}


def fail(message: str) -> None:
    """The template's raise_exception."""
    raise ValueError(message)
