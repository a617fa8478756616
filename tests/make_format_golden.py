"""Write tests/golden/formats/decoded.npz: what the gguf package decodes blocks to.

    pip install gguf
    python tests/make_format_golden.py

For each type: under its name the float32 values of the first block of `golden.blocks.sample`, and
under `<name>.sha256` the digest of all that `golden.blocks.MANY` blocks hold.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def main() -> None:
    import gguf
    from golden import blocks

    arrays = {}
    for name in blocks.FIELDS:
        kind = gguf.GGMLQuantizationType[name.upper()]
        values = gguf.quants.dequantize(blocks.sample(name, blocks.MANY), kind)
        arrays[name] = values[0]
        arrays[f"{name}.sha256"] = blocks.digest(values)
    path = HERE / "golden" / "formats" / "decoded.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
