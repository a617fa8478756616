"""The models that `fidelity.measure` compares: opened, named, and checked to speak the same
tokens.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .blocks import stored_type
from .progress import Progress

if TYPE_CHECKING:
    from .model import Model

NOT_TEXT = ("mtp.", "model.visual.")


def open_models(
    models: Any,
    reference: Any,
    stack: ExitStack,
    *,
    context: int,
    threads: int | None,
    progress: Progress,
) -> tuple[Model, dict[str, Model]]:
    """The reference and the models by name, each path loaded once."""
    from .loading import load
    from .model import Model

    loaded: dict[str, Model] = {}

    def opened(source: Any, where: str) -> Model:
        if isinstance(source, Model):
            if source.context < context:
                raise ValueError(
                    f"{where}: loaded for {source.context:,} tokens and a window takes "
                    f"context={context:,}"
                )
            return source
        if not isinstance(source, str | os.PathLike):
            raise TypeError(
                f"{where}: expected a loaded model, a path or a hub id, got {type(source).__name__}"
            )
        key = os.fspath(source)
        if key not in loaded:
            bars = progress if isinstance(progress, bool) else None
            options: dict[str, Any] = {"vision": False, "mtp": False, "threads": threads}
            model = load(source, context=context, progress=bars, **options)
            loaded[key] = stack.enter_context(model)
        return loaded[key]

    base = opened(reference, "reference")
    if isinstance(models, Mapping):
        named = {str(name): opened(source, f"models[{name!r}]") for name, source in models.items()}
    else:
        single = isinstance(models, str | os.PathLike | Model)
        sources = [models] if single else list(models)
        named = _named([opened(source, f"models[{i}]") for i, source in enumerate(sources)])
    if not named:
        raise ValueError("models: expected at least one")
    return base, named


def _named(models: list[Model]) -> dict[str, Model]:
    """Models under names that differ: with their type, then with a number."""
    often = Counter(model.name for model in models)
    named: dict[str, Model] = {}
    for model in models:
        name = model.name if often[model.name] == 1 else f"{model.name} {main_type(model)}"
        number = 2
        while name in named:
            name = f"{name.partition(' #')[0]} #{number}"
            number += 1
        named[name] = model
    return named


def check_vocabulary(
    name: str, model: Model, base: Model, text: Any, ids: NDArray[np.int32], *, special: bool
) -> None:
    """The same rows, and the same ids for the text."""
    from .loading import AbsentTokenizer

    rows, expected = model.config.text.vocab_size, base.config.text.vocab_size
    if rows != expected:
        raise ValueError(
            f"vocabularies differ: {name} has {rows:,} rows, the reference {base.name} {expected:,}"
        )
    if model is base or not isinstance(text, str) or isinstance(model.tokenizer, AbsentTokenizer):
        return
    own = np.array(model.tokenize(text, special=special), np.int32)
    if not np.array_equal(own, ids):
        both = min(len(own), len(ids))
        first = int(np.argmax(np.append(own[:both] != ids[:both], True)))
        raise ValueError(
            f"vocabularies differ: {name} and the reference {base.name} cut the text into other "
            f"tokens, from number {first} on"
        )


def text_size(model: Model) -> tuple[int, int]:
    """Parameters and bytes of the text model."""
    tensors = model._checkpoint.tensors
    spans = [tensors.span(name) for name in tensors if not name.startswith(NOT_TEXT)]
    return sum(math.prod(span.shape) for span in spans), sum(span.nbytes for span in spans)


def main_type(model: Model) -> str:
    """The type that most weights of the text model are stored in."""
    tensors, weights = model._checkpoint.tensors, Counter[str]()
    for name in tensors:
        if not name.startswith(NOT_TEXT):
            span = tensors.span(name)
            weights[stored_type(span)] += math.prod(span.shape)
    return weights.most_common(1)[0][0]
