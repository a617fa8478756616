"""From what was asked to what runs: defaults, limits, stop tokens and the native sampler's
arguments, all checked.
"""

from __future__ import annotations

import dataclasses
import inspect
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .answer import ChatText, Parser, PlainText
from .fields import nearest
from .prompt import Prompt, check_fits

if TYPE_CHECKING:
    from . import _core
    from .loading import Checkpoint
    from .model import Model
    from .sampling import SamplingParams
    from .tokenizer import Tokenizer

STOP_NAMES = ("<|im_end|>", "<|endoftext|>")  # turns end with the first whatever config.json says


@dataclass(frozen=True)
class Request:
    """All that decides an answer."""

    prompt: Prompt
    sampling: SamplingParams
    max_tokens: int  # what was asked for or what fits, whichever is less
    stop_token_ids: frozenset[int]
    native: dict[str, Any]  # sampling arguments of the native stream
    make_parser: Callable[[], Parser]
    thinking_budget: int | None = None
    thinking_ids: tuple[int, int] = (-1, -1)  # <think> and </think>
    thinking_end: tuple[int, ...] = ()  # the tokens that close a <think> part

    def open(self, core: _core.Session, **piece: Any) -> _core.NativeStream:
        """The native stream of the answer, for a session that holds a prefix of the prompt;
        `piece` goes with the rest of it.
        """
        return core.generate(
            self.prompt.ids[core.position :],
            max_tokens=self.max_tokens,
            stop_token_ids=sorted(self.stop_token_ids),
            **piece,
            **self.native,
        )


def make_request(
    model: Model,
    prompt: Prompt,
    sampling: SamplingParams | None,
    fields: dict[str, Any],
    *,
    thinking_budget: int | None,
) -> Request:
    """Check and resolve. ValueError names a bad field, ContextLengthError tells what does not
    fit.
    """
    from .sampling import SamplingParams, defaults_for

    defaults = defaults_for(model._checkpoint, thinking=prompt.thinking)
    if fields.get("temperature") == 0:  # the likeliest token: the penalties go with sampling
        defaults = defaults.replace(
            presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0
        )
    params = SamplingParams.merge(defaults, sampling, **fields)
    size = model.config.text.vocab_size
    params.check_vocabulary(size)
    check_fits(len(prompt.ids), context=model.context, room=1)
    room = model.context - len(prompt.ids)
    stop_ids = frozenset(params.stop_token_ids)
    return Request(
        prompt=prompt,
        sampling=params,
        max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
        stop_token_ids=stop_ids if params.ignore_eos else stop_ids | model._eos_ids,
        native=_native_sampling(params, vocab_size=size),
        make_parser=lambda: _parser(model.tokenizer, prompt),
        **_thinking(thinking_budget, model.tokenizer),
    )


def eos_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> frozenset[int]:
    """Where answers end: what config.json and generation_config.json say, and the family's own two
    tokens.
    """
    found: set[int] = set()
    for value in (
        checkpoint.config.text.eos_token_id,
        checkpoint.generation_config.get("eos_token_id"),
    ):
        values = [value] if isinstance(value, int) else value or ()
        found.update(token for token in values if isinstance(token, int))
    if tokenizer is not None:
        found.update(
            token for name in STOP_NAMES if (token := tokenizer.token_id(name)) is not None
        )
    return frozenset(token for token in found if 0 <= token < checkpoint.config.text.vocab_size)


def check_fields(fields: Mapping[str, Any], method: Callable[..., Any]) -> None:
    """TypeError with the nearest name for a keyword that is neither the method's nor a field of
    SamplingParams.
    """
    from .sampling import SamplingParams

    sampling = [field.name for field in dataclasses.fields(SamplingParams)]
    for name in fields:
        if name not in sampling:
            own = [
                p.name
                for p in inspect.signature(method).parameters.values()
                if p.kind is p.KEYWORD_ONLY
            ]
            hint = nearest(name, [*own, *sampling])
            raise TypeError(f"{method.__name__}() got an unknown keyword {name!r}{hint}")


def _parser(tokenizer: Tokenizer, prompt: Prompt) -> Parser:
    """Chat answers are split into their kinds, everything else is text."""
    if prompt.from_messages:
        return ChatText(tokenizer, in_reasoning=prompt.thinking, tools=prompt.tools)
    from .loading import AbsentTokenizer

    return PlainText(None if isinstance(tokenizer, AbsentTokenizer) else tokenizer)


def _thinking(budget: int | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of a Request that bound reasoning."""
    if budget is None:
        return {}
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise ValueError(
            f"thinking_budget={budget!r}: expected a number of tokens, 0 or more, or None for no "
            "limit"
        )
    ids = [tokenizer.token_id(name) for name in ("<think>", "</think>")]
    if None in ids:
        raise ValueError(
            "thinking_budget: this model's tokenizer has no <think> and </think> tokens; leave "
            "it out"
        )
    end = tokenizer.encode("\n</think>\n\n", special=True)
    return {"thinking_budget": budget, "thinking_ids": tuple(ids), "thinking_end": tuple(end)}


def _native_sampling(params: SamplingParams, *, vocab_size: int) -> dict[str, Any]:
    """SamplingParams in the native stream's words."""
    logprobs = params.logprobs
    seed = secrets.randbits(64) if params.seed is None else params.seed
    return {
        "min_tokens": params.min_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "seed": seed,
        "logit_bias": dict(params.logit_bias),
        "logprobs": -1 if logprobs is None else vocab_size if logprobs == -1 else logprobs,
    }
