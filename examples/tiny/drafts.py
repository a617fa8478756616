#!/usr/bin/env python3
"""How often the MTP layer's first draft is the token that tiny then says itself.

    python examples/tiny/drafts.py [--folder qwen35/tiny]

Greedy, over the right replies to held-out questions, in f32 with model.py: after each token the
draft for the next but one is compared with what the trunk chooses there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from batches import collate
from model import TinyModel, load_config, load_weights
from render import Renderer
from tasks import EVALUATED, example

FOLDER = Path(__file__).resolve().parents[2] / "qwen35" / "tiny"


@torch.no_grad()
def acceptance(folder: Path, seed: int, n: int) -> dict[str, float]:
    """Share of accepted first drafts by task and mode, and over all tokens."""
    renderer = Renderer(folder)
    model = TinyModel(load_config(folder), load_weights(folder), torch.float32)
    out, all_right, all_tokens = {}, 0, 0
    for task in EVALUATED:
        for mode, thinking in (("direct", False), ("thinking", True)):
            rng, right, tokens = Random(f"{seed} {task} {mode}"), 0, 0
            for _ in range(n):
                one = example(rng, task, held=True, level=0.2, thinking=thinking)
                row = renderer.tokens(one)
                batch, start = collate([row], renderer.pads), row.start
                hidden = model.hidden(batch.ids, batch.sight)
                own = model.logits(hidden)[0].argmax(-1)[start:-1]
                mtp = model.mtp_hidden(batch.ids, hidden, batch.sight)
                draft = model.logits(mtp)[0].argmax(-1)[start - 1 : -1]
                right += (own == draft).sum().item()
                tokens += len(own)
            out[f"{task} {mode}"] = right / tokens
            all_right, all_tokens = all_right + right, all_tokens + tokens
    return out | {"all": all_right / all_tokens}


def main() -> None:
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--folder", type=Path, default=FOLDER)
    ap.add_argument("--n", type=int, default=30, help="questions per task and mode")
    ap.add_argument("--seed", type=int, default=2026)
    args = ap.parse_args()
    for name, share in acceptance(args.folder, args.seed, args.n).items():
        print(f"{name:22} {100 * share:.1f} %")


if __name__ == "__main__":
    main()
