"""Sampling parameters: one frozen record, every field checked, and the defaults a checkpoint or its
model card gives.

The names and meanings are vLLM's. The sampler itself is in the C core.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import ModelFormatError
from .fields import nearest
from .json_file import shown

if TYPE_CHECKING:
    from .loading import Checkpoint

MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_LOGPROBS = 1 << 18  # above every vocabulary of the family
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How an answer is drawn. Raises ValueError with the field's name, value and range; TypeError
    for unknown fields.

    max_tokens          tokens at most; None: until the context is full; 0: none
    temperature         0: the most likely token, whatever the seed; else 0.0001 to 100
    top_p               keep the most likely tokens until their probabilities sum to this, in (0, 1]
    top_k               keep so many; 0 or -1: all
    min_p               keep tokens at least this likely, relative to the most likely one, in [0, 1]
    presence_penalty    taken from the logits of tokens already said, in [-2, 2]
    frequency_penalty   the same for each time they were said
    repetition_penalty  divides positive and multiplies negative logits of tokens in prompt and
                        answer; 1: off
    seed                0 to 2**64 - 1; None: another one every time
    stop                strings that end the answer and are not part of it (a str or up to 64 of
                        them)
    stop_token_ids      ids that end the answer as its own end token does
    logprobs            None: no log-probabilities; n: of the token and the n most likely; -1: of
                        the whole vocabulary
    logit_bias          added to logits by token id, in [-100, 100]
    ignore_eos          go on past the model's own end tokens
    min_tokens          no end token and no stop string before so many tokens
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    ignore_eos: bool = False
    min_tokens: int = 0

    def __new__(cls, *args: Any, **given: Any) -> SamplingParams:
        """Refuse unknown names before the generated __init__ does, with the nearest known one."""
        _check_names("SamplingParams", given)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGERS.items():
            self._set(name, _integer(name, getattr(self, name), low, high))
        for name, (low, high) in _NUMBERS.items():
            self._set(name, _number(name, getattr(self, name), low, high))
        if 0 < self.temperature < 1e-4:
            _refuse("temperature", self.temperature, "0 (greedy) or 0.0001 to 100")
        if self.top_p == 0 or self.repetition_penalty == 0:
            name = "top_p" if self.top_p == 0 else "repetition_penalty"
            _refuse(name, 0, "a number above 0")
        self._set("top_k", max(self.top_k, 0))
        self._set("stop", _stops(self.stop))
        self._set("stop_token_ids", _token_ids(self.stop_token_ids))
        self._set("logit_bias", _bias(self.logit_bias))
        if not isinstance(self.ignore_eos, bool):
            _refuse("ignore_eos", self.ignore_eos, "True or False")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            _refuse("min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed."""
        _check_names("SamplingParams.replace", changes)
        return replace(self, **changes)

    def check_vocabulary(self, size: int) -> None:
        """ValueError for a token id in logit_bias or stop_token_ids that is not below `size`, the
        model's V."""
        for name in ("logit_bias", "stop_token_ids"):
            for id in getattr(self, name):
                if id >= size:
                    raise ValueError(f"{name}: token id {id} is outside the vocabulary of {size}")

    @staticmethod
    def merge(
        defaults: SamplingParams, given: SamplingParams | None = None, **changes: Any
    ) -> SamplingParams:
        """`given`, whole, in the place of `defaults` when there is one; then the changes."""
        if given is not None and not isinstance(given, SamplingParams):
            raise TypeError(f"sampling must be SamplingParams, not {type(given).__name__}")
        return (given or defaults).replace(**changes)


# Inclusive ranges; None stands for a field that may be None.
_INTEGERS: dict[str, tuple[int, int]] = {
    "max_tokens": (0, _INT32_MAX),
    "top_k": (-1, _INT32_MAX),
    "seed": (0, 2**64 - 1),
    "logprobs": (-1, MAX_LOGPROBS),
    "min_tokens": (0, _INT32_MAX),
}
_NULLABLE = frozenset({"max_tokens", "seed", "logprobs"})
_NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0, 100),
}


def _check_names(where: str, given: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(SamplingParams)]
    for name in given:
        if name not in known:
            raise TypeError(f"{where}() got an unknown keyword {name!r}{nearest(name, known)}")


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise ValueError(f"{name}={shown(value)}: expected {expected}")


def _integer(name: str, value: Any, low: int, high: int) -> int | None:
    if value is None and name in _NULLABLE:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        _refuse(name, value, f"an integer from {low} to {high}" + " or None" * (name in _NULLABLE))
    return number


def _number(name: str, value: Any, low: float, high: float) -> float:
    good = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not good or not low <= value <= high:  # NaN is in no range
        _refuse(name, value, f"a number from {low:g} to {high:g}")
    return float(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = () if value is None else (value,) if isinstance(value, str) else value
    if isinstance(stops, (bytes, bytearray, Mapping)) or not isinstance(stops, Iterable):
        _refuse("stop", value, "a str or a sequence of them")
    stops = tuple(stops)
    for index, stop in enumerate(stops):
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARS:
            _refuse(f"stop[{index}]", stop, f"a str of 1 to {MAX_STOP_CHARS} characters")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"stop: {len(stops)} strings, expected at most {MAX_STOPS}")
    return stops


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = () if value is None else value
    if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Iterable):
        _refuse("stop_token_ids", value, "a sequence of token ids")
    ids = sorted(ids) if isinstance(ids, (set, frozenset)) else ids
    return tuple(_integer(f"stop_token_ids[{i}]", id, 0, _INT32_MAX) for i, id in enumerate(ids))


def _bias(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        _refuse("logit_bias", value, "a mapping of token ids to numbers")
    bias = {}
    for id, number in value.items():
        if isinstance(id, str) and id.isascii() and id.isdigit():  # JSON has no other keys
            id = int(id)
        id = _integer("logit_bias: token id", id, 0, _INT32_MAX)
        bias[id] = _number(f"logit_bias[{id}]", number, -100, 100)
    return bias


# Defaults

# The model cards' presets for general use (Hugging Face, Qwen/Qwen3.5-*, "Best Practices"). The
# cards of 0.8B and 2B have two without thinking: text at temperature 1.0, top_p 1.0,
# presence_penalty 2.0, and text with images at the values below, which are also those of the larger
# sizes; one default has to serve both, so it is the second.
_INSTRUCT = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5)
_THINKING = SamplingParams(temperature=1.0, top_p=0.95, top_k=20, presence_penalty=1.5)
PRESETS: dict[str, tuple[SamplingParams, SamplingParams]] = {  # without and with thinking
    "0.8B": (_INSTRUCT, _THINKING),
    "2B": (_INSTRUCT, _THINKING),
    "4B": (_INSTRUCT, _THINKING),
    "9B": (_INSTRUCT, _THINKING),
    "27B": (_INSTRUCT, _THINKING),
}
_SIZES = {  # (hidden_size, num_hidden_layers)
    (1024, 24): "0.8B",
    (2048, 24): "2B",
    (2560, 32): "4B",
    (4096, 32): "9B",
    (5120, 64): "27B",
}
_FROM_FILE = {  # keys of generation_config.json
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "max_new_tokens": "max_tokens",
}


def defaults_for(checkpoint: Checkpoint, *, thinking: bool) -> SamplingParams:
    """What a request without parameters uses: the checkpoint's generation_config.json, else the
    card's preset.

    A generation_config.json that says nothing about sampling (only ids, say) leaves the preset in
    place; do_sample=false is temperature 0. Raises ModelFormatError for values out of range.
    """
    config = checkpoint.generation_config
    given = {ours: config[key] for key, ours in _FROM_FILE.items() if config.get(key) is not None}
    if config.get("do_sample") is False:
        given["temperature"] = 0.0
    if given.keys() <= {"max_tokens"}:
        size = size_name(
            checkpoint.config.text.hidden_size, len(checkpoint.config.text.layer_types)
        )
        return PRESETS[size][bool(thinking)].replace(**given)
    try:
        return SamplingParams(**given)
    except ValueError as error:
        raise ModelFormatError(f"{checkpoint.path}/generation_config.json: {error}") from None


def size_name(hidden_size: int, layers: int) -> str:
    """The released size of this geometry, or the one with the nearest hidden_size."""
    nearest_size = min(_SIZES, key=lambda known: (abs(known[0] - hidden_size), known))
    return _SIZES.get((hidden_size, layers), _SIZES[nearest_size])
