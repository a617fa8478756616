"""Prompts: what a user hands over (text, ids, messages, images, videos) -> checked token ids and
where pictures stand among them. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ContextLengthError, TemplateError
from .vision import parts_of
from .vision_prompt import unplaced

if TYPE_CHECKING:
    from .chat import ChatTemplate
    from .loading import Checkpoint
    from .messages import MediaPart
    from .tokenizer import Tokenizer
    from .vision import Vision
    from .vision_input import VisionInput
    from .vision_prompt import Layout

LONGEST_TOKEN_BYTES = (
    512  # no vocabulary of the family has a longer one; bounds the tokens of a text from below
)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A tokenized prompt, made by `Model.prompt`.

    ids: int32 [T], images and videos with all their tokens. position_ids: int32 [3, T] (time,
    height, width; all equal for text). text: what was tokenized, with one placeholder an image or
    video. images, videos: VisionInput with pixels, grid_thw and timestamps. from_messages: rendered
    by the chat template, so the answer is split into reasoning, text and tool calls. thinking: the
    prompt ends inside an open <think>.
    """

    ids: NDArray[np.int32]
    text: str | None = None
    images: list[VisionInput] = field(default_factory=list)
    videos: list[VisionInput] = field(default_factory=list)
    from_messages: bool = False
    thinking: bool = False
    tools: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    tokenizer: Tokenizer | None = field(default=None, repr=False)
    layout: Layout | None = field(default=None, repr=False)  # where images and videos stand

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def position_ids(self) -> NDArray[np.int32]:
        """[3, T] int32."""
        if self.layout is not None:
            return self.layout.position_ids()
        return np.tile(np.arange(len(self.ids), dtype=np.int32), (3, 1))

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """[T] int64: equal for two prompts as far as they say and show the same."""
        return self.ids.astype(np.int64) if self.layout is None else self.layout.keys()

    def head(self, length: int) -> Prompt:
        """The first `length` tokens, or fewer where that would cut an image in two. Its text is not
        known.
        """
        layout = None if self.layout is None else self.layout.head(length)
        ids = self.ids[:length] if layout is None else layout.ids
        return Prompt(ids, tokenizer=self.tokenizer, layout=layout)

    def _repr_html_(self) -> str:
        from .notebook import prompt_html

        return prompt_html(self)


class Prompts:
    """Makes the prompts of one model. Immutable but for the chat template, which is compiled when
    first used.
    """

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: Tokenizer, vision: Vision, *, context: int
    ) -> None:
        self._name = checkpoint.name
        self._vision = vision
        self._config = checkpoint.config
        self._source = checkpoint.chat_template
        self._tokenizer = tokenizer
        self._context = context
        self._template: ChatTemplate | None = None
        self._message_id = tokenizer.token_id("<|im_start|>")

    def make(
        self, prompt: Any, *, where: str, images: Sequence[Any] = (), videos: Sequence[Any] = ()
    ) -> Prompt:
        """Text, ids or a Prompt -> Prompt. Ids must be entries of the tokenizer."""
        size = min(self._tokenizer.vocab_size, self._config.text.vocab_size)
        made = self._make(prompt, parts_of(images, videos), vocab_size=size, where=where)
        self._refuse_placeholders(made, where=where)
        return made

    def numeric(
        self, prompt: Any, *, where: str, images: Sequence[Any] = (), videos: Sequence[Any] = ()
    ) -> Prompt:
        """The same where only numbers come out: the padding rows of the embedding are allowed too,
        and placeholders without pictures.
        """
        size = self._config.text.vocab_size
        return self._make(prompt, parts_of(images, videos), vocab_size=size, where=where)

    def _make(self, prompt: Any, parts: list[MediaPart], *, vocab_size: int, where: str) -> Prompt:
        if parts:
            return self._make_seeing(prompt, parts, vocab_size=vocab_size, where=where)
        if isinstance(prompt, Prompt) and prompt.tokenizer is not None:
            return prompt
        if isinstance(prompt, Prompt):  # not made by a model: its ids were never looked at
            ids = check_ids(prompt.ids, vocab_size=vocab_size, where=f"{where}.ids")
            return replace(prompt, ids=ids, tokenizer=self._tokenizer)
        if isinstance(prompt, str):
            ids = encode_text(self._tokenizer, prompt, context=self._context, where=where)
            return Prompt(ids, prompt, tokenizer=self._tokenizer)
        if is_messages(prompt):
            raise TypeError(
                f"{where}: these look like chat messages; use model.chat() or model.prompt() for "
                "them"
            )
        ids = check_ids(prompt, vocab_size=vocab_size, where=where)
        return Prompt(ids, tokenizer=self._tokenizer)

    def _make_seeing(
        self, prompt: Any, parts: list[MediaPart], *, vocab_size: int, where: str
    ) -> Prompt:
        """A prompt of text or ids with images and videos."""
        if isinstance(prompt, Prompt) or is_messages(prompt):
            kind = "a Prompt" if isinstance(prompt, Prompt) else "messages"
            raise ValueError(
                f"{where}: {kind} holds its own images and videos; leave images and videos out"
            )
        images, videos = self._vision.read(parts)
        text = prompt if isinstance(prompt, str) else None
        if text is not None:
            check_prompt_text(text, context=self._context, where=where)
            ids: Any = self._vision.placeholders.in_text(
                text, images=len(images), videos=len(videos)
            )
        else:
            ids = check_ids(prompt, vocab_size=vocab_size, where=where)
        return self._placed(ids, images, videos, where=where, text=text)

    def _placed(
        self,
        ids: Any,
        images: list[VisionInput],
        videos: list[VisionInput],
        *,
        where: str,
        **fields: Any,
    ) -> Prompt:
        layout = self._vision.placeholders.lay_out(ids, images, videos, where=where)
        return Prompt(
            layout.ids,
            images=images,
            videos=videos,
            layout=layout,
            tokenizer=self._tokenizer,
            **fields,
        )

    def from_messages(
        self,
        messages: Any,
        tools: Sequence[Mapping[str, Any]] | None,
        enable_thinking: bool | None,
        kwargs: Mapping[str, Any] | None,
    ) -> Prompt:
        """OpenAI messages -> Prompt, through the checkpoint's chat template."""
        from .chat import encode_chat

        parts: list[MediaPart] = []
        text, ids = encode_chat(
            self._tokenizer,
            self.template(),
            messages,
            tools=tools,
            enable_thinking=enable_thinking,
            kwargs=kwargs,
            media=parts.extend,
        )
        array = np.array(ids, dtype=np.int32)
        fields = {
            "text": text,
            "from_messages": True,
            "thinking": ends_thinking(self._tokenizer, array),
            "tools": tools,
        }
        if not parts:
            return Prompt(array, tokenizer=self._tokenizer, **fields)
        return self._placed(array, *self._vision.read(parts), where="messages", **fields)

    def template(self) -> ChatTemplate:
        """The checkpoint's own template; TemplateError when it has none."""
        if self._template is None:
            from .chat import ChatTemplate

            if self._source is None:
                raise TemplateError(
                    f"{self._name}: the checkpoint has no chat template (chat_template.jinja, or "
                    "chat_template in "
                    "tokenizer_config.json); use generate() with a prompt written out"
                )
            self._template = ChatTemplate(self._source, where=self._name)
        return self._template

    def last_message_start(self, ids: NDArray[np.int32]) -> int:
        """Index of the last <|im_start|>, 0 where there is none."""
        return max(0, _last(ids, self._message_id)) if self._message_id is not None else 0

    def _refuse_placeholders(self, prompt: Prompt, *, where: str) -> None:
        """ValueError for tokens that stand for pictures which are not there."""
        alone = unplaced(self._config, prompt.ids) if prompt.layout is None else None
        if alone is not None:
            kind, token, count = alone
            raise ValueError(
                f"{where}: {count} {kind} placeholders (token {token}) and 0 {kind}s; pass them as "
                f"{kind}s=[...], or leave the placeholders out"
            )


def is_messages(value: Any) -> bool:
    """Whether a prompt is a list of chat messages."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and len(value) > 0 and isinstance(value[0], Mapping)


def check_text(text: str, *, where: str) -> str:
    """`text` if it has a UTF-8 form; ValueError names the place of a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: lone surrogate U+{ord(text[error.start]):04X} at position {error.start}; "
            "text must be valid Unicode (open files with encoding='utf-8')"
        ) from None
    return text


def check_ids(ids: Any, *, vocab_size: int, where: str) -> NDArray[np.int32]:
    """Token ids as int32 [T]. TypeError for what is no sequence, ValueError with the index for what
    is no token id.
    """
    if isinstance(ids, str | bytes | bytearray | Mapping) or not (
        isinstance(ids, np.ndarray | Sequence) or hasattr(ids, "__array__")
    ):
        raise TypeError(
            f"{where}: expected text or a sequence of token ids, got {type(ids).__name__}"
        )
    if isinstance(ids, Sequence):
        ids = _integers(ids, where=where)
    array = np.asarray(ids)
    if array.ndim != 1:
        raise ValueError(f"{where}: token ids must have shape [T], got {list(array.shape)}")
    if array.size == 0:
        raise ValueError(f"{where} is empty; at least one token is needed")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{where}[0]: token ids must be integers, got an array of {array.dtype}")
    bad = np.flatnonzero((array < 0) | (array >= vocab_size))
    if bad.size:
        index = int(bad[0])
        raise ValueError(
            f"{where}[{index}]: token id {int(array[index])} is outside the vocabulary (0 to "
            f"{vocab_size - 1})"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


def _integers(ids: Sequence[Any], *, where: str) -> NDArray[np.int64]:
    """A sequence of Python or NumPy integers as int64 [T]."""
    for index, value in enumerate(ids):
        is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_integer:
            raise ValueError(
                f"{where}[{index}]: token ids must be integers, got {value!r:.60} "
                f"({type(value).__name__})"
            )
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{where}[{index}]: token id {int(value)} is outside the vocabulary")
    return np.array(ids, dtype=np.int64)


def encode_text(tokenizer: Tokenizer, text: str, *, context: int, where: str) -> NDArray[np.int32]:
    """Plain text -> ids int32 [T]: special tokens spelt out in it stay plain text."""
    check_prompt_text(text, context=context, where=where)
    return np.array(tokenizer.encode(text), dtype=np.int32)


def check_prompt_text(text: str, *, context: int, where: str) -> None:
    """ValueError for a text without UTF-8 or without anything, ContextLengthError for one that is
    too long whatever its tokens are.
    """
    check_text(text, where=where)
    if not text:
        raise ValueError(f"{where} is empty; at least one token is needed")
    least = len(text) // LONGEST_TOKEN_BYTES
    if least > context:
        raise ContextLengthError(
            f"{where}: {len(text):,} characters are more than {least:,} tokens and the context "
            f"holds {context:,}; "
            "shorten it, or load the model with a larger context="
        )


def ends_thinking(tokenizer: Tokenizer, ids: NDArray[np.int32]) -> bool:
    """Whether the prompt ends inside a <think> that is still open in its last message."""
    opening, closing = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    if opening is None:
        return False
    last = _last(ids, opening)
    enders = (closing, tokenizer.token_id("<|im_start|>"))
    return last >= 0 and all(_last(ids, other) < last for other in enders if other is not None)


def _last(ids: NDArray[np.int32], token: int) -> int:
    """Index of the last `token` in `ids`, -1 if there is none."""
    places = np.flatnonzero(ids == token)
    return int(places[-1]) if places.size else -1


def check_fits(length: int, *, context: int, room: int) -> None:
    """ContextLengthError unless `length` prompt tokens and `room` more fit `context`."""
    if length + room > context:
        answer = ", which leaves no room for an answer" if length <= context else ""
        raise ContextLengthError(
            f"the prompt has {length:,} tokens and the context holds {context:,}{answer}; "
            "shorten the prompt, "
            f"or load the model with context={_suggest(length + room)}"
        )


def _suggest(tokens: int) -> int:
    """The next multiple of 1,024 with some room above `tokens`."""
    return (tokens // 1024 + 2) * 1024
