"""The errors qwen35 raises where Python has no exact word for them.

Every message says what failed, in which file, tensor or argument, what was found, what was expected
and what to do.
"""


class Error(Exception):
    """Base of all errors of this package."""


class ModelFormatError(Error, ValueError):
    """A model file breaks its own format or contradicts another file of the folder."""


class UnsupportedModelError(Error, ValueError):
    """A well-formed model of a kind this package does not run."""


class TemplateError(Error, ValueError):
    """The chat template failed, tried something forbidden, or ran over its limits."""


class MediaError(Error, ValueError):
    """An image or video cannot be read or is outside the limits."""


class ContextLengthError(Error, ValueError):
    """The prompt, or prompt and answer, do not fit the context."""


class ClosedError(Error, RuntimeError):
    """The model or session was closed."""


class BusyError(Error, RuntimeError):
    """Another thread is using this session."""


class ForkError(Error, RuntimeError):
    """The process forked after the model was loaded: load it in the child, or "spawn" processes."""
