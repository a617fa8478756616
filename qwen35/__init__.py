"""Qwen3.5 on CPUs: load a model, ask it, stream the answer.

    import qwen35

    with qwen35.load("tiny") as model:
        for token in model.chat("What is 23 + 45?"):
            print(token.text, end="", flush=True)

Everything here is imported when first used: `import qwen35` alone loads no array library, tokenizer
or template engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    BusyError,
    ClosedError,
    ContextLengthError,
    Error,
    ForkError,
    MediaError,
    ModelFormatError,
    TemplateError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from .generation import TokenStream
    from .loading import load
    from .media import MediaLimits
    from .model import Model
    from .prompt import Prompt
    from .results import Generation, Score, Timings, Token, ToolCall, Usage
    from .sampling import SamplingParams
    from .session import Session

__version__ = "0.1.0"

__all__ = [
    "BusyError",
    "ClosedError",
    "ContextLengthError",
    "Error",
    "ForkError",
    "Generation",
    "MediaError",
    "MediaLimits",
    "Model",
    "ModelFormatError",
    "Prompt",
    "SamplingParams",
    "Score",
    "Session",
    "TemplateError",
    "Timings",
    "Token",
    "TokenStream",
    "ToolCall",
    "UnsupportedModelError",
    "Usage",
    "__version__",
    "load",
]

_HOMES = {
    "Generation": "results",
    "MediaLimits": "media",
    "Model": "model",
    "Prompt": "prompt",
    "SamplingParams": "sampling",
    "Score": "results",
    "Session": "session",
    "Timings": "results",
    "Token": "results",
    "TokenStream": "generation",
    "ToolCall": "results",
    "Usage": "results",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its file when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'qwen35' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
