"""Write tests/golden/*.npz: what transformers (float32) computes for the golden models.

    pip install 'qwen35[parity]'
    python tests/make_golden.py

The files change only when golden/models.py or the model does. Each holds `ids` [T], `at` (places in
it), `logits` float32 [len(at), V] after those places, `greedy` (the tokens that follow), and
`bf16_kl`: the mean KL divergence, in nats, of transformers' own bfloat16 run to its float32 run
over all T places.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "parity")]

T, GREEDY = 130, 24
AT = (0, 1, 2, 3, 31, 62, 63, 64, 65, 127, 128, 129)


def make(name: str) -> dict[str, np.ndarray]:
    """The arrays of one golden file."""
    import hf
    import torch
    from golden import models

    ids = models.ids(name, T)
    with tempfile.TemporaryDirectory() as folder:
        models.write(name, Path(folder))
        exact = hf.from_folder(folder)
        rounded = hf.from_folder(folder, torch.bfloat16)
    logits = hf.logits(exact, ids)
    return {
        "ids": ids,
        "at": np.array(AT),
        "logits": logits[list(AT)],
        "greedy": np.array(hf.greedy(exact, ids, GREEDY), dtype=np.int32),
        "bf16_kl": np.array(hf.mean_kl(logits, hf.logits(rounded, ids))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "golden", help="folder of the files")
    args = parser.parse_args()
    from golden import models

    for name in models.CONFIGS:
        path = args.out / f"{name}.npz"
        np.savez_compressed(path, **make(name))
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
