"""What training asks of the tower's tokens and of names in the text, beside the next token.

Linear layers read, from each token of the tower, the kinds of the things whose centres lie in its
block, where they lie, how they move, and how many are like them; and from the text model's state
at the end of a thing's name ("the red circle"), after the first full attention, its kinds, place
and movement. Answers alone teach the same far more slowly: an answer is one token in thirty. The
layers are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from patches import MERGE, Frame
from tasks import digits, scenes
from torch import Tensor

KINDS = digits.FIRST_KIND + 10
MOST = 4  # things in a scene
STEP = 8.0  # pixels of movement that count as 1
Mention = tuple[int, Frame, scenes.Label]  # position in the flattened batch, what it names


def motion(label: scenes.Label, frame: Frame) -> tuple[float, ...]:
    """Column and row of the thing's centre in blocks, and its movement."""
    h, w = (side // MERGE for side in frame.grid)
    return label.at[0] * w, label.at[1] * h, label.step[0] / STEP, label.step[1] / STEP


class Probes(torch.nn.Module):
    """The layers and their losses."""

    def __init__(self, width: int):
        super().__init__()
        self.token = torch.nn.Linear(width, KINDS + 4 + 3 * MOST)
        self.name = torch.nn.Linear(width, KINDS + 4)

    def seen(self, features: Tensor, frames: list[Frame]) -> Tensor:
        """How badly the tower's features [tokens, D] of the frames show what is in each block."""
        kinds, rows, moved, alike = targets(frames)
        got, where, count = self.token(features).split([KINDS, 4, 3 * MOST], -1)
        loss = F.binary_cross_entropy_with_logits(got, kinds, reduction="none").sum(-1).mean()
        if not len(rows):
            return loss
        off = (where[rows] - moved).square().sum(-1).sum() / len(features)
        counts = F.cross_entropy(count[rows].reshape(-1, MOST), alike.flatten(), reduction="sum")
        return loss + off + 0.6 * counts / len(features)

    def named(self, states: Tensor, mentions: Iterable[Mention]) -> Tensor:
        """How badly the states [B * T, D] at the ends of names tell what is named."""
        at, frames, labels = zip(*mentions, strict=True)
        kinds, where = torch.zeros(len(at), KINDS), list(map(motion, labels, frames))
        for i, label in enumerate(labels):
            kinds[i, list(label.kinds)] = 1
        got, told = self.name(states[list(at)]).split([KINDS, 4], -1)
        loss = F.binary_cross_entropy_with_logits(got, kinds, reduction="none").sum(-1).mean()
        return loss + (told - torch.tensor(where)).square().sum(-1).mean()


def targets(frames: list[Frame]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kinds of the things centred in each token's block, or of the digit shown [tokens, KINDS];
    then each thing's token, its `motion` [things, 4], and one less than are alike [things, 3].
    """
    kinds, start = np.zeros((sum(f.tokens for f in frames), KINDS), np.float32), 0
    rows: list[int] = []
    moved: list[tuple[float, ...]] = []
    alike: list[tuple[int, ...]] = []
    for f in frames:
        h, w = (side // MERGE for side in f.grid)
        for label in f.labels:
            if label.at is None:
                kinds[start : start + f.tokens, list(label.kinds)] = 1
                continue
            x, y = label.at
            rows.append(start + min(int(y * h), h - 1) * w + min(int(x * w), w - 1))
            kinds[rows[-1], list(label.kinds)] = 1
            moved.append(motion(label, f))
            alike.append(tuple(n - 1 for n in label.alike))
        start += f.tokens
    index, counts = torch.tensor(rows, dtype=torch.long), torch.tensor(alike, dtype=torch.long)
    return torch.from_numpy(kinds), index, torch.tensor(moved), counts
