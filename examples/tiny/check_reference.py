#!/usr/bin/env python3
"""Compare model.py with transformers on random f32 weights and on the shipped folder.

python examples/tiny/check_reference.py [--folder qwen35/tiny]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from model import TinyModel, init_vision, init_weights, load_config
from safetensors.torch import save_file
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
    text = {n: x for n, x in weights.items() if ".visual." not in n}
    for T in (5, 37, 300):
        ids = torch.randint(0, 2000, (2, T), generator=gen)
        with torch.no_grad():
            ours = TinyModel(cfg, text, torch.float32)
            got = ours.logits(ours.hidden(ids))
            want = reference(input_ids=ids).logits
        error = (got - want).abs().max().item()
        print(f"{T} tokens: logits differ by at most {error:.1e}, largest {want.abs().max():.2f}")
        assert error < 1e-4 * max(1.0, want.abs().max().item())


if __name__ == "__main__":
    main()
