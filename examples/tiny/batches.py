"""Batches of examples for training, the mixture they are drawn from, and the tower's own labels."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import tasks
import torch
from model import Sight
from patches import MERGE, Frame, parts, positions
from render import Renderer, Row
from tasks import SEEN, digits, example
from torch import Tensor

MIXTURE = {
    "add": 0.44,
    "compare": 0.30,
    "needle": 0.22,
    "sort": 0.11,
    "reverse": 0.07,
    "tool": 0.13,
    "tool_result": 0.04,
    "chat": 0.03,
    "copy": 0.01,
    "count": 0.9,
    "place": 1.0,
    "color": 0.6,
    "shape": 0.1,
    "describe": 0.4,
    "where": 0.3,
    "digit": 0.12,
    "moves": 0.6,
    "way": 0.3,
    "first": 0.2,
}
KINDS = digits.FIRST_KIND + 10
SEEN_SHARE = 0.65  # of examples that show something


def mixture(accuracy: dict[str, float]) -> dict[tuple[str, bool], float]:
    """Weights of (task, thinking): the lower its held-out accuracy, the larger its share of its
    group."""
    groups: dict[bool, dict[tuple[str, bool], float]] = {True: {}, False: {}}
    for task, share in MIXTURE.items():
        for thinking in (False, True):
            reached = accuracy.get(task + ("/think" if thinking else ""), 0.65)
            group = groups[task in SEEN or task in ("describe", "where")]
            group[task, thinking] = share * max(0.25, 1.15 - reached)
    out = {}
    for seen, total in ((True, SEEN_SHARE), (False, 1 - SEEN_SHARE)):
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
        return Batch(ids, weights, None, [])
    here = torch.isin(ids, torch.tensor(sorted(pads)))
    patches = torch.from_numpy(np.concatenate([f.pixels for f in frames]))
    return Batch(ids, weights, Sight(patches, [f.grid for f in frames], here, at), frames)


def targets(frames: list[Frame]) -> tuple[Tensor, Tensor, Tensor]:
    """What each token's block of the image holds: (colours and shapes of things centred within it
    or the digit shown [tokens, KINDS], where a centre lies in blocks [tokens, 2], whether one does
    [tokens])."""
    n = sum(f.tokens for f in frames)
    kinds, where, any_ = np.zeros((n, KINDS)), np.zeros((n, 2)), np.zeros(n, bool)
    start = 0
    for f in frames:
        h, w = (side // MERGE for side in f.grid)
        for x, y, kind in f.labels:
            if x is None:
                kinds[start : start + f.tokens, kind] = 1
                continue
            column, row = min(int(x * w), w - 1), min(int(y * h), h - 1)
            i = start + row * w + column
            kinds[i, kind], where[i], any_[i] = 1, (x * w, y * h), True
        start += f.tokens
    return torch.from_numpy(kinds).float(), torch.from_numpy(where).float(), torch.from_numpy(any_)
