#!/usr/bin/env python3
"""Compare model.py with transformers on random f32 weights and on the shipped folder.

python examples/tiny/check_reference.py [--folder qwen35/tiny]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from random import Random

import torch
from batches import Batch, collate
from model import TinyModel, init_weights, load_config
from render import Renderer
from safetensors.torch import save_file
from tasks import example
from tower import init_vision
from transformers import Qwen3_5ForConditionalGeneration

FOLDER = Path(__file__).resolve().parents[2] / "qwen35" / "tiny"


def main() -> None:
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--folder", type=Path, default=FOLDER)
    folder = ap.parse_args().folder
    cfg = load_config(folder)
    weights = {**init_weights(cfg, 5), **init_vision(cfg, 5)}
    gen = torch.Generator().manual_seed(3)
    for x in weights.values():
        if x.ndim == 1:
            x += torch.randn(x.shape, generator=gen) * 0.1
    with tempfile.TemporaryDirectory() as temp:
        save_file(weights, Path(temp) / "model.safetensors", metadata={"format": "pt"})
        (Path(temp) / "config.json").write_text((folder / "config.json").read_text())
        reference, info = Qwen3_5ForConditionalGeneration.from_pretrained(
            temp, dtype=torch.float32, output_loading_info=True
        )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    ours = TinyModel(cfg, weights, torch.float32)
    for T in (5, 37, 300):
        ids = torch.randint(0, 2000, (2, T), generator=gen)
        with torch.no_grad():
            report(f"{T} tokens", ours.logits(ours.hidden(ids)), reference(input_ids=ids).logits)
    rng, renderer = Random(7), Renderer(folder)
    for task in ("place", "count", "digit", "way", "first"):
        row = renderer.tokens(example(rng, task, held=False, level=1, thinking=True))
        batch = collate([row], renderer.pads)
        with torch.no_grad():
            got = ours.logits(ours.hidden(batch.ids, batch.sight))
            want = reference(**as_reference(cfg, batch)).logits
        report(f"{task}, {len(row.frames)} frames", got, want)


def as_reference(cfg: dict, batch: Batch) -> dict:
    """transformers' arguments for one row that holds images or one video."""
    video, grids = (batch.ids == cfg["video_token_id"]).any().item(), batch.sight.grids
    kind = "video" if video else "image"
    thw = [[len(grids), *grids[0]]] if video else [[1, *grid] for grid in grids]
    return {
        "input_ids": batch.ids,
        "mm_token_type_ids": batch.sight.pads.int() * (2 if video else 1),
        f"{kind}_grid_thw": torch.tensor(thw),
        "pixel_values_videos" if video else "pixel_values": batch.sight.patches,
    }


def report(what: str, got: torch.Tensor, want: torch.Tensor) -> None:
    """Print the difference; raise where it is more than rounding."""
    error = (got - want).abs().max().item()
    print(f"{what}: logits differ by at most {error:.1e}, largest {want.abs().max():.2f}")
    if error > 1e-4 * max(1.0, want.abs().max().item()):
        raise SystemExit(f"{what}: model.py and transformers disagree")


if __name__ == "__main__":
    main()
