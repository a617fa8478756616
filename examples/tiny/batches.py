"""Batches of examples for training, and the mixture they are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import tasks
import torch
from model import Sight
from patches import Frame, parts, positions
from probes import Mention
from render import Renderer, Row
from tasks import SEEN, example
from torch import Tensor

MIXTURE = {
    "add": 0.44,
    "compare": 0.30,
    "needle": 0.22,
    "sort": 0.17,
    "reverse": 0.10,
    "tool": 0.20,
    "tool_result": 0.10,
    "chat": 0.03,
    "copy": 0.01,
    "count": 1.1,
    "place": 1.0,
    "color": 0.4,
    "shape": 0.1,
    "describe": 0.4,
    "where": 0.3,
    "digit": 0.12,
    "moves": 0.6,
    "way": 0.3,
    "first": 0.2,
}


def mixture(accuracy: dict[str, float]) -> dict[tuple[str, bool], float]:
    """Weights of (task, thinking): the lower its held-out accuracy, the larger its share of its
    group, and the lower the mean of a group (text, seen), the larger the group's."""
    groups: dict[bool, dict[tuple[str, bool], float]] = {True: {}, False: {}}
    behind: dict[bool, list[float]] = {True: [], False: []}
    for task, share in MIXTURE.items():
        seen = task in SEEN or task in ("describe", "where")
        for thinking in (False, True):
            reached = accuracy.get(task + ("/think" if thinking else ""), 0.65)
            groups[seen][task, thinking] = share * max(0.25, 1.15 - reached)
            behind[seen].append(1.03 - reached)
    means = {seen: sum(x) / len(x) for seen, x in behind.items()}
    seen_share = min(0.75, max(0.45, means[True] / (means[True] + means[False])))
    out = {}
    for seen, total in ((True, seen_share), (False, 1 - seen_share)):
        scale = total / sum(groups[seen].values())
        out |= {k: v * scale for k, v in groups[seen].items()}
    return out


@dataclass
class Batch:
    """Right-padded rows; extra frames are for the tower alone."""

    ids: Tensor  # [B, T]
    weights: Tensor  # [B, T] of each position as a target
    sight: Sight | None
    frames: list[Frame]
    mentions: list[Mention]


class Batches:
    """An endless stream of batches of rows of similar lengths."""

    def __init__(self, renderer: Renderer, seed: int, tokens: int):
        self.renderer, self.rng, self.tokens = renderer, Random(seed), tokens
        self.queue: list[list[Row]] = []

    def next(self, level: float, weights: dict) -> Batch:
        """The next batch; `weights` from `mixture`."""
        if not self.queue:
            self.fill(level, weights)
        return collate(self.queue.pop(), self.renderer.pads)

    def extra(self, n: int) -> list[Frame]:
        """Labelled frames of n examples that show something."""
        out: list[Frame] = []
        for _ in range(n):
            one = tasks.TASKS[self.rng.choice(SEEN)](self.rng, False, 1.0)
            many = [f for _, f in parts(one.messages, self.renderer.sizes)]
            for frame, labels in zip((f for fs in many for f in fs), one.labels, strict=True):
                frame.labels = labels
                out.append(frame)
        return out

    def fill(self, level: float, weights: dict) -> None:
        names, total, pool = list(weights), 0, []
        while total < 12 * self.tokens:
            task, thinking = self.rng.choices(names, list(weights.values()))[0]
            one = example(self.rng, task, held=False, level=level, thinking=thinking)
            pool.append(self.renderer.tokens(one))
            total += len(pool[-1].ids)
        pool.sort(key=lambda row: len(row.ids) * self.rng.uniform(0.95, 1.05))
        batch: list[Row] = []
        for item in pool:
            longest = max([len(item.ids), *(len(row.ids) for row in batch)])
            if batch and longest * (len(batch) + 1) > self.tokens:
                self.queue.append(batch)
                batch = []
            batch.append(item)
        self.queue.append(batch)
        self.rng.shuffle(self.queue)


def collate(rows: list[Row], pads: set[int]) -> Batch:
    """Rows side by side, padded on the right; `pads` are the ids of the placeholders."""
    B, T = len(rows), max(len(row.ids) for row in rows)
    ids, weights = torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T)
    at = torch.arange(T).repeat(3, B, 1)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n], weights[i, :n] = torch.tensor(row.ids), torch.tensor(row.weights)
        at[:, i, :n] = torch.from_numpy(positions(row.ids, pads, (f.grid for f in row.frames)))
    frames = [f for row in rows for f in row.frames]
    if not frames:
        return Batch(ids, weights, None, [], [])
    here = torch.isin(ids, torch.tensor(sorted(pads)))
    patches = torch.from_numpy(np.concatenate([f.pixels for f in frames]))
    sight = Sight(patches, [f.grid for f in frames], here, at)
    mentions = [(i * T + j, f, label) for i, row in enumerate(rows) for j, f, label in row.mentions]
    return Batch(ids, weights, sight, frames, mentions)
