"""What happens to weights between their files and the core: read ahead, quantized, converted.

Sizes are compared with the memory there is before the first byte is copied.
"""

import math
import warnings
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from .checkpoint import Checkpoint, pieces
from .errors import ModelFormatError
from .json_file import shown
from .load_progress import Report
from .machine import available_memory
from .quantize import block_bytes, encode, plan

if TYPE_CHECKING:
    from .gguf_checkpoint import GgufTensors
    from .weight_files import Tensors

BF16 = np.dtype(ml_dtypes.bfloat16)


def check_memory(checkpoint: Checkpoint, dtype: str, recipe: str | None = None) -> None:
    """Refuse copies that cannot fit; warn where the mapped files cannot stay in memory."""
    tensors, free = checkpoint.tensors, available_memory()
    if free is None:
        return
    spans = {name: tensors.span(name) for name in tensors}
    copied = sum(span.nbytes for span in spans.values() if not span.aligned)
    blocks = _plan(checkpoint, recipe) if recipe is not None else {}
    copied += sum(block_bytes(type, spans[name].shape) for name, type in blocks.items())
    if dtype == "bfloat16":
        converted = [s for n, s in spans.items() if n not in blocks and _converts(s)]
        copied += sum(2 * math.prod(span.shape) for span in converted)
    if copied > free:
        raise MemoryError(
            f"{checkpoint.path}: {_gib(copied)} of weights must be copied (converted, or "
            f"misaligned in their file) but {_gib(free)} are available; take a smaller model, or "
            "free memory"
        )
    mapped = sum(file.nbytes for file in tensors.files)
    if mapped > free and not copied:
        warnings.warn(
            f"{checkpoint.path}: {_gib(mapped)} of weights but {_gib(free)} of memory available; "
            "parts will be read from disk again and again",
            stacklevel=3,
        )


def _plan(checkpoint: Checkpoint, recipe: str) -> dict[str, str]:
    text = checkpoint.config.text
    options = {"layers": text.num_hidden_layers, "tied": text.tie_word_embeddings}
    return dict(plan(checkpoint.tensors, recipe, **options))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


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


def _converts(array: Any) -> bool:
    """Whether dtype="bfloat16" converts it: matrices yes; vectors (norms, A_log) and blocks stay as
    they are.
    """
    return len(array.shape) > 1 and array.dtype in (np.float32, np.float16)


def to_bfloat16(tensors: "Tensors | GgufTensors", report: Report) -> None:
    """Replace matrices stored otherwise by bfloat16 copies, rounded to nearest even."""
    todo = [name for name in tensors if _converts(tensors.span(name))]
    total, done = sum(tensors.span(name).nbytes for name in todo), 0
    for name in todo:
        array: Any = tensors.stored(name)
        result = np.empty(array.shape, BF16)
        for source, target in zip(pieces(array), pieces(result), strict=True):
            target[:] = source.astype(BF16)
            done += source.nbytes
            report(done, total, "convert")
        tensors.replace(name, result)


def quantize_weights(
    checkpoint: Checkpoint, recipe: str, threads: int | None, report: Report
) -> None:
    """Replace matrices by blocks of the recipe."""
    tensors, todo = checkpoint.tensors, _plan(checkpoint, recipe)
    total, before = sum(math.prod(tensors.span(name).shape) for name in todo), 0
    for name, type in todo.items():

        def done(elements: int, before: int = before) -> None:
            report(before + elements, total, "quantize")

        try:
            blocks = encode(tensors.stored(name), type, threads=threads, done=done)
        except ValueError as error:
            raise ModelFormatError(f"{checkpoint.path}: tensor {shown(name)}: {error}") from None
        tensors.replace(name, blocks)
        before += math.prod(blocks.shape)
