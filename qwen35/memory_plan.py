"""What a model will take, in bytes, before any of it is taken: headers and the core's own sizes.

checkpoint and how it is to be loaded -> Plan -> the context it gets, or MemoryError with the
numbers. Blocks count as memory to be allocated, those of a GGUF file too, as they are laid out for
the processor; but for an embedding that is not the head, of which rows are read, and in the exact
mode. Those and plain matrices are used where their file is mapped: what does not fit of them is
read from disk again and again.

A context that was asked for is given or refused. The default one is a ceiling, as K/V pages come
when they are needed: it is lowered to what the machine can hold, so that a long answer ends in
ContextLengthError rather than the whole process by the system; without a word, since most answers
never come near it.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .blocks import BlockSpan
from .checkpoint import EMBEDDING, HEAD, Checkpoint
from .config import Config
from .machine import available_memory
from .quantize import block_bytes, plan

MAX_DEFAULT_CONTEXT = 262_144
LEAST_DEFAULT_CONTEXT = 4_096
SPARE = 0.1  # of what is available: a default context leaves it to Python, images, other programs
SMALL_BITS = 6  # a weight: models of fewer are not told to take a smaller type
PAGE = 64  # tokens of a K/V page
# A smaller head is read so fast that a copy to look into saves little.
SCREEN_WEIGHTS = 1 << 24
SLOW_CODES = ("c", "neon")  # targets that multiply six-bit codes more slowly than they read bf16


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes. `weights` are those in use: `mapped` where their files lie, the rest allocated.
    `beside` is what is held besides: converted and not used, or made from by quantize=.
    """

    weights: int
    mapped: int
    beside: int
    kv_per_token: int
    state: int  # recurrent state of one session
    scratch: int
    screen: int  # the copy of the head that draws look into first, once it is whole
    context: int  # tokens
    parameters: int  # of the weights in use

    @property
    def kv(self) -> int:
        """K/V of one session at the whole context."""
        return self.kv_per_token * self.context

    @property
    def total(self) -> int:
        """The total of `Model.memory()`."""
        return self.weights + self.kv + self.state + self.scratch + self.screen

    @property
    def allocated(self) -> int:
        """Weights that no mapped file holds."""
        return self.weights - self.mapped + self.beside

    @property
    def least(self) -> int:
        """All that must fit, but for the K/V."""
        return self.allocated + self.state + self.scratch + self.screen

    def fitting_context(self, available: int) -> int:
        """Tokens whose K/V fits `available` bytes beside the rest, in whole pages."""
        pages = (available - self.least) // (PAGE * self.kv_per_token or 1)
        return max(0, pages * PAGE)


def make_plan(
    checkpoint: Checkpoint,
    *,
    context: int,
    threads: int,
    kv_dtype: Any,
    dtype: str = "auto",
    recipe: str | None = None,
    vision: bool = True,
    screen: bool | str = "auto",
) -> MemoryPlan:
    """The plan of a model that is loaded so. Raises ValueError for a kv_dtype whose blocks the
    heads do not fit.
    """
    from . import _core

    tensors = checkpoint.tensors
    geometry = core_geometry(checkpoint, dtype=dtype, vision=vision)
    core = _core.plan_memory(geometry, threads=threads, kv_dtype=kv_dtype)
    used = {name for name, _ in _core.expected_tensors(geometry)}
    made = blocks_to_make(checkpoint, recipe)
    table = "" if checkpoint.config.text.tie_word_embeddings else EMBEDDING
    weights, mapped, beside = core["owned"], 0, 0
    for name in tensors:
        laid_out = dtype != "float32" and name != table
        size, copied = _in_memory(tensors.span(name), made.get(name), dtype, laid_out)
        if name in used:
            weights, mapped = weights + size, mapped + (0 if copied else size)
            beside += size if name in made and laid_out else 0  # as made, and as laid out
        elif name in made or (dtype == "bfloat16" and is_converted(tensors.span(name))):
            beside += size
    plan = MemoryPlan(
        weights=weights,
        mapped=mapped,
        beside=beside,
        kv_per_token=core["kv_per_token"],
        state=core["state"],
        scratch=core["scratch"],
        screen=core["screen"] if is_screened(checkpoint, made, screen) else 0,
        context=context,
        parameters=sum(math.prod(tensors.span(name).shape) for name in used),
    )
    return without_screen(plan) if screen == "auto" else plan


def is_screened(checkpoint: Checkpoint, made: dict[str, str], screen: bool | str) -> bool:
    """Whether the head gets a copy that draws look into first: `made` are matrices that become
    blocks. The core makes none of blocks, nor of rows that are no multiple of 32 long.
    """
    from . import _core

    name = EMBEDDING if checkpoint.config.text.tie_word_embeddings else HEAD
    span = checkpoint.tensors.span(name)
    if name in made or isinstance(span, BlockSpan) or span.shape[1] % 32:
        return False
    if screen != "auto":
        return bool(screen)
    return math.prod(span.shape) >= SCREEN_WEIGHTS and _core.cpu()["isa"] not in SLOW_CODES


def without_screen(plan: MemoryPlan) -> MemoryPlan:
    """The plan, without the screen where that does not fit beside all weights, mapped ones too."""
    available = available_memory()
    if available is None or plan.least + plan.mapped <= (1 - SPARE) * available:
        return plan
    return replace(plan, screen=0)


def core_geometry(checkpoint: Checkpoint, *, dtype: str, vision: bool) -> Any:
    """`_core.Geometry` of a checkpoint that is loaded so."""
    return checkpoint.config.geometry(
        vision=vision and checkpoint.has_vision,
        exact=dtype == "float32",
        tiled_value_heads=checkpoint.tensors.tiled_value_heads,
    )


def _in_memory(span: Any, block_type: str | None, dtype: str, laid_out: bool) -> tuple[int, bool]:
    """Bytes of a tensor as it is used, and whether they are allocated."""
    if block_type is not None:
        return block_bytes(block_type, span.shape), True
    if dtype == "bfloat16" and is_converted(span):
        return 2 * math.prod(span.shape), True
    return span.nbytes, laid_out if isinstance(span, BlockSpan) else not span.aligned


def is_converted(array: Any) -> bool:
    """Whether dtype="bfloat16" converts it (a tensor or its span): matrices yes; vectors (norms,
    A_log) and blocks stay as they are.
    """
    return len(array.shape) > 1 and array.dtype in (np.float32, np.float16)


def blocks_to_make(checkpoint: Checkpoint, recipe: str | None) -> dict[str, str]:
    """Name and type of the matrices that quantize= turns into blocks; drafts are not used yet."""
    if recipe is None:
        return {}
    text = checkpoint.config.text
    options = {"layers": text.num_hidden_layers, "tied": text.tie_word_embeddings}
    found = plan(checkpoint.tensors, recipe, **options)
    return {name: type for name, type in found if not name.startswith("mtp.")}


def default_context(config: Config) -> int:
    """Tokens a session would hold if memory were no matter: the trained length, up to a limit;
    with YaRN the stretched one.
    """
    limit = config.context_limit
    return limit if config.text.rope_scaling else min(limit, MAX_DEFAULT_CONTEXT)


def settle(plan: MemoryPlan, where: str, *, asked: bool, kv_dtype: str) -> MemoryPlan:
    """The plan with the context that the machine can hold.

    asked: the context is the user's, given or refused, and no default. Raises MemoryError with the
    numbers. Warns where mapped weights and the rest are more than there is.
    """
    available = available_memory()
    if available is None:
        return plan
    if plan.allocated > available:
        raise MemoryError(
            f"{where}: {gib(plan.allocated)} of weights must be held in memory (as blocks, "
            f"converted, or misaligned in their file) but {gib(available)} are available; take a "
            'smaller model or type, such as quantize="q4_k_m", or free memory'
        )
    if asked and plan.least + plan.kv > available:
        raise MemoryError(_refusal(plan, where, available, kv_dtype))
    if not asked:
        plan = fitted(plan, available)
    if plan.total + plan.beside > available:
        rest = (
            "parts of the weights will be read from disk again and again"
            if plan.mapped
            else f"the K/V of {plan.context:,} tokens will not fit"
        )
        warnings.warn(
            f"{where}: {_parts(plan)}, but {gib(available)} of memory available; {rest}",
            stacklevel=3,
        )
    return plan


def fitted(plan: MemoryPlan, available: int) -> MemoryPlan:
    """The plan with its default context lowered to what fits beside all weights, mapped ones too,
    but not below LEAST_DEFAULT_CONTEXT.
    """
    fits = plan.fitting_context(int((1 - SPARE) * available) - plan.mapped)
    return replace(plan, context=min(plan.context, max(fits, LEAST_DEFAULT_CONTEXT)))


def _refusal(plan: MemoryPlan, where: str, available: int, kv_dtype: str) -> str:
    """Why a context does not fit, and what does."""
    fits = plan.fitting_context(available)
    ways = [f"context={fits} or less"] if fits else []
    if kv_dtype != "q8_0":
        ways.append('kv_dtype="q8_0"')
    if plan.allocated > plan.kv / 4 and 8 * plan.weights / plan.parameters > SMALL_BITS:
        ways.append('a smaller quantize= such as "q4_k_m"')
    mapped = f" (and {gib(plan.mapped)} mapped from their file)" if plan.mapped else ""
    return (
        f"{where}: context={plan.context} takes {gib(plan.kv)} of K/V "
        f"({kv_dtype}); with {gib(plan.allocated)} of weights{mapped}, "
        f"{gib(plan.state)} of state and {gib(plan.scratch + plan.screen)} of scratch that is "
        f"{gib(plan.least + plan.kv)}, but {gib(available)} are available; take "
        f"{', '.join([*ways, 'or free memory'])}"
    )


def _parts(plan: MemoryPlan) -> str:
    return (
        f"{gib(plan.weights + plan.beside)} of weights, {gib(plan.kv)} of K/V for "
        f"{plan.context:,} tokens, {gib(plan.state)} of state and "
        f"{gib(plan.scratch + plan.screen)} of scratch"
    )


def gib(size: int) -> str:
    """A size as messages have it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:.1f} MiB"
