#!/usr/bin/env python3
"""Write csrc/iq_grids.h: the codebooks of the iq formats, from the gguf package's values.

pip install gguf
python csrc/iq_grids.py > csrc/iq_grids.h

An entry is packed into 16 bits: for each element, first element lowest, the place of its value
among the values that the codebook has, 2 bits (eight elements) or 3 bits (four) wide.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from gguf import quants

BOOKS = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
A_LINE = 12

HEAD = """\
/* iq_grids.h: codebooks of the iq formats (formats_iq.c). Made by iq_grids.py, from the values in
 * the gguf package {version}.
 *
 * An entry of 8 elements has 2 bits for each, one of 4 elements 3 bits, first element lowest: the
 * place of the element's value among those in the codebook's comment. */
#ifndef Q35_IQ_GRIDS_H
#define Q35_IQ_GRIDS_H

#include <stdint.h>
"""


def table(name: str) -> str:
    """One codebook as a C array."""
    book = getattr(quants, name)
    book.init_grid()
    count, width = book.grid_shape
    values = np.array(book.grid_map)
    codes = np.searchsorted(values, book.grid.reshape(count, width))
    entries = (codes << np.arange(width) * (16 // width if width == 8 else 3)).sum(axis=1)
    hexes = [f"0x{e:04x}" for e in entries]
    lines = [", ".join(hexes[i : i + A_LINE]) for i in range(0, count, A_LINE)]
    head = f"/* of {', '.join(map(str, values.tolist()))} */\n"
    head += f"static const uint16_t {name.lower()}_grid[{count}] = {{\n    "
    return head + ",\n    ".join(lines) + "};\n"


def main() -> None:
    print(HEAD.format(version=version("gguf")))
    print("\n".join(table(name) for name in BOOKS))
    print("#endif")


if __name__ == "__main__":
    main()
