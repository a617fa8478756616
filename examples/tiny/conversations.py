"""Questions of every kind that is read, not seen, with their answers, as one text of chats."""

from __future__ import annotations

from pathlib import Path
from random import Random

from render import Renderer
from tasks import READ, example


def conversations(folder: Path, seed: str, questions: int, *, held: bool) -> str:
    """`questions` of each task and mode through the template in `folder`, shuffled; special tokens
    spelt out. held: of the kind that training never saw. Other seeds, other questions.
    """
    renderer, texts = Renderer(folder), []
    for task in READ:
        for thinking in (False, True):
            rng = Random(f"{seed} {task} {thinking}")
            for _ in range(questions):
                one = example(rng, task, held=held, level=0.2, thinking=thinking)
                texts.append("".join(renderer.text(one)) + "\n")
    Random(1).shuffle(texts)
    return "".join(texts)
