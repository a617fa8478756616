"""What happens to weights between their files and the core: read ahead, quantized, converted, and
their mapped pages let go. memory_plan.py has compared their sizes with the memory there is.
"""

import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from .checkpoint import Checkpoint, pieces
from .errors import ModelFormatError
from .json_file import shown
from .load_progress import Report
from .machine import available_memory
from .memory_plan import blocks_to_make, is_converted
from .quantize import encode

if TYPE_CHECKING:
    from .gguf_checkpoint import GgufTensors
    from .weight_files import Tensors

BF16 = np.dtype(ml_dtypes.bfloat16)


def read_ahead(tensors: "Tensors | GgufTensors", report: Report) -> None:
    """Have the mapped files read into memory, with progress, unless they are larger than it."""
    total = sum(file.nbytes for file in tensors.files)
    free = available_memory()
    if free is not None and total > free:
        return
    before = 0
    for file in tensors.files:
        for done in file.read_ahead():
            report(before + done, total, "read")
        before += file.nbytes


def to_bfloat16(tensors: "Tensors | GgufTensors", report: Report) -> None:
    """Replace matrices stored otherwise by bfloat16 copies, rounded to nearest even."""
    todo = [name for name in tensors if is_converted(tensors.span(name))]
    total, done = sum(tensors.span(name).nbytes for name in todo), 0
    for name in todo:
        array: Any = tensors.stored(name)
        result = np.empty(array.shape, BF16)
        for source, target in zip(pieces(array), pieces(result), strict=True):
            target[:] = source.astype(BF16)
            done += source.nbytes
            report(done, total, "convert")
        tensors.replace(name, result)
        tensors.let_go(name)


def quantize_weights(
    checkpoint: Checkpoint, recipe: str, threads: int | None, report: Report
) -> None:
    """Replace matrices by blocks of the recipe."""
    tensors, todo = checkpoint.tensors, blocks_to_make(checkpoint, recipe)
    total, before = sum(math.prod(tensors.span(name).shape) for name in todo), 0
    for name, type in todo.items():

        def done(elements: int, before: int = before) -> None:
            report(before + elements, total, "quantize")

        try:
            blocks = encode(tensors.stored(name), type, threads=threads, done=done)
        except ValueError as error:
            raise ModelFormatError(f"{checkpoint.path}: tensor {shown(name)}: {error}") from None
        tensors.replace(name, blocks)
        tensors.let_go(name)
        before += math.prod(blocks.shape)
