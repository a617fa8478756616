"""The model as its users see it: prompts in, streams, logits and scores out. Policy only; `_core`
computes.

text, ids or messages -> Prompt -> Request (defaults, limits, stop ids) -> TokenStream. Immutable
and shared by threads: every request runs on a session of its own, taken from a small pool that
keeps the past of earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ClosedError
from .generation import TokenStream
from .lifecycle import Gate, Registry, guarded
from .pool import SessionPool
from .progress import Progress
from .prompt import Prompt, Prompts, check_fits, check_text, is_messages
from .request import check_fields, eos_ids, make_request
from .results import Generation, Score
from .session import Session
from .vision import Poll, Vision, parts_of

if TYPE_CHECKING:
    from typing import Self

    from . import _core
    from .batch import Batch
    from .config import Config
    from .loading import Checkpoint
    from .media import MediaLimits
    from .sampling import SamplingParams
    from .tokenizer import Tokenizer

Message = Mapping[str, Any]
PromptLike = str | Sequence[int] | NDArray[np.integer[Any]] | Prompt


class Model:
    """A loaded model, made by `qwen35.load`. Shared freely between threads; `close()` or a `with`
    block frees it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        core: _core.Model,
        tokenizer: Tokenizer,
        *,
        context: int,
        dtype: str = "auto",
        kv_dtype: str = "float16",
        progress: Progress = None,
        media_limits: MediaLimits | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._core: _core.Model | None = core
        self._progress: Progress = progress
        self._gate = Gate(checkpoint.name)
        self._streams: Registry[TokenStream | Batch] = Registry()
        self._sessions: Registry[Session] = Registry()
        self._pool = SessionPool()
        self._last: Generation | None = None
        self.name: str = checkpoint.name
        self.config: Config = checkpoint.config
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.kv_dtype = kv_dtype
        self.threads: int = core.threads
        self.context = context
        self._vision = Vision(
            checkpoint,
            tokenizer,
            enabled=core.feature_shape is not None,
            limits=media_limits,
            context=context,
            progress=progress,
        )
        self._prompts = Prompts(checkpoint, tokenizer, self._vision, context=context)
        self._eos_ids = eos_ids(checkpoint, tokenizer)

    # Answers

    def generate(
        self,
        prompt: PromptLike,
        *,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        sampling: SamplingParams | None = None,
        **fields: Any,
    ) -> TokenStream:
        """Continue `prompt`: text, token ids, or a Prompt. `fields` are those of SamplingParams
        (max_tokens=100, ...).

        Special tokens spelt out in a text stay plain text; ids are taken as given. All of the
        answer is text, except that a Prompt made from messages is answered as `chat` would.

        images: arrays [H, W, 3] uint8 (also gray, RGBA, floats in 0..1), PIL images, paths, bytes;
        videos: {"video": frames or a path, "fps": f}. They go where the prompt has <|image_pad|>
        and <|video_pad|>, before a text that has none.
        ValueError for bad ids or sampling fields, ContextLengthError for a prompt that does not
        fit, MediaError for an image or video that cannot be read.
        """
        check_fields(fields, self.generate)
        self._gate.check()
        made = self._prompts.make(prompt, where="prompt", images=images, videos=videos)
        return self._stream(made, sampling, fields)

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        thinking_budget: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        sampling: SamplingParams | None = None,
        **fields: Any,
    ) -> TokenStream:
        """Answer `messages` (OpenAI's form; a str is one user message), split into reasoning, text
        and tool calls. A message's content may hold parts {"type": "image", "image": ...} and
        {"type": "video", "video": ..., "fps": ...}.

        enable_thinking: None leaves it to the checkpoint's template. thinking_budget: so many
        tokens of reasoning at most, then the answer is asked for. `fields` are those of
        SamplingParams. tools: OpenAI's function schemas.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        check_fields(fields, self.chat)
        self._gate.check()
        prompt = self._prompts.from_messages(messages, tools, enable_thinking, chat_template_kwargs)
        return self._stream(prompt, sampling, fields, thinking_budget=thinking_budget)

    @guarded
    def generate_batch(
        self,
        prompts: Iterable[PromptLike | Sequence[Message]],
        *,
        thinking_budget: int | None = None,
        sampling: SamplingParams | None = None,
        max_batch: int = 16,
        progress: Progress = None,
        **fields: Any,
    ) -> list[Generation]:
        """Answer many prompts, up to `max_batch` (1 to 64) of them in one forward pass; results in
        their order.

        A prompt is what `generate` takes, or chat messages, answered as `chat` would. Every answer
        is the one it would be alone: with seed=s that of prompt i is generate(prompts[i],
        seed=s + i), modulo 2**64. What all prompts begin with is read once. `fields` are those of
        SamplingParams. progress: called after each step with the prompts answered and all; None: as
        given to load(). Memory: a recurrent state and K/V for each of max_batch.

        Errors in a prompt name it ("prompts[3]: ...") and come before anything is computed; the
        kinds are those of `generate`. Ctrl-C ends all of them and leaves the model usable.
        """
        from .batch import Batch, make_requests

        check_fields(fields, self.generate_batch)
        self._checkpoint.check_unchanged()
        requests = make_requests(self, prompts, sampling, fields, thinking_budget=thinking_budget)
        batch = Batch(self, requests, max_batch=max_batch, progress=progress)
        self._streams.add(batch)
        return batch.run()

    def prompt(
        self,
        messages_or_text: PromptLike | Sequence[Message],
        *,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The tokens that `chat` (for messages) or `generate` (for text or ids) would send to the
        model.
        """
        self._gate.check()
        if is_messages(messages_or_text) and not len(images) and not len(videos):
            return self._prompts.from_messages(
                messages_or_text, tools, enable_thinking, chat_template_kwargs
            )
        if tools is not None or enable_thinking is not None or chat_template_kwargs is not None:
            raise ValueError(
                "tools, enable_thinking and chat_template_kwargs go with messages, not with text "
                "or ids"
            )
        return self._prompts.make(
            messages_or_text, where="messages_or_text", images=images, videos=videos
        )

    # Numbers

    @guarded
    def logits(
        self,
        prompt: PromptLike,
        *,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        last_only: bool = False,
    ) -> NDArray[np.float32]:
        """Logits after every token of the prompt, float32 [T, V]; with last_only after the last,
        float32 [1, V].
        """
        self._checkpoint.check_unchanged()
        made = self._prompts.numeric(prompt, where="prompt", images=images, videos=videos)
        ids = made.ids
        check_fits(len(ids), context=self.context, room=0)
        core = self._core_session(len(ids))
        shown = self._shown(made, 0, len(ids))
        if not last_only:
            return core.logits_all(ids, **shown)
        core.prefill(ids, **shown)
        return np.array(core.logits, dtype=np.float32)[np.newaxis]

    @guarded
    def score(
        self, prompt: PromptLike, continuations: Sequence[str | Sequence[int]]
    ) -> list[Score]:
        """How likely each continuation of `prompt` is. The prompt is read once for all of them.

        A str continuation is tokenized by itself, special tokens off: its leading space belongs to
        it.
        """
        from .scoring import score

        return score(self, prompt, continuations)

    @guarded
    def embed_image(self, image: Any) -> NDArray[np.float32]:
        """What the text model sees of an image, float32 [n, D], one row a token; `image` is
        anything that `images=` takes, or {"image": ..., "max_pixels": ...}.
        """
        images, _ = self._vision.read(parts_of([image], []))
        return self._vision.features(self._native(), images[0])[:, 0].copy()

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text. special: spelt-out special tokens such as <|im_end|> become their
        ids.
        """
        if not isinstance(text, str):
            raise TypeError(f"tokenize() takes a str, got {type(text).__name__}")
        return self.tokenizer.encode(check_text(text, where="text"), special=special)

    def detokenize(self, ids: ArrayLike, *, skip_special: bool = False) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self.tokenizer.decode(np.asarray(ids).tolist(), skip_special=skip_special)

    # What it holds

    @property
    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """The checkpoint's tensors by name: read-only views of the file, bf16 as
        ml_dtypes.bfloat16.
        """
        self._gate.check()
        return MappingProxyType(self._checkpoint.tensors)

    @property
    def parameters(self) -> int:
        """Weights in the checkpoint."""
        tensors = self._checkpoint.tensors
        return sum(math.prod(tensors.span(name).shape) for name in tensors)

    @property
    def last(self) -> Generation | None:
        """The answer that ended last, whole or cut off: what an interrupted notebook cell had come
        to.
        """
        return self._last

    def memory(self, *, context: int | None = None) -> dict[str, int]:
        """Bytes: weights, kv (one session at `context` tokens, default the model's), state (its
        recurrent state), scratch, screen (the copy of the head that draws look into first, once it
        is whole), and their total.
        """
        self._gate.check()
        native = self._native().memory()
        tokens = self.context if context is None else context
        parts = {
            "weights": native["weights"] + native.get("owned", 0),
            "kv": native["kv_per_token"] * tokens,
            "state": native["state"],
            "scratch": native["scratch"],
            "screen": native["screen"],
        }
        return {**parts, "total": sum(parts.values())}

    # Its life

    @guarded
    def session(self, *, context: int | None = None) -> Session:
        """A timeline of its own, for `sync`, `snapshot`, `fork` and `save`. context: tokens it can
        hold.
        """
        return self._new_session(context)

    def close(self) -> None:
        """Free everything. Running answers end "cancelled", and are waited for. May be called
        again; in a forked child there is nothing to free.
        """
        if self._gate.is_foreign():
            return
        self._gate.shut()
        streams = self._streams.alive()
        for stream in streams:
            stream.cancel()
        self._gate.wait_until_empty()
        for stream in streams:
            stream._shut()
        self._pool.close()
        for session in self._sessions.alive():
            session.close()
        self._core = None
        self._vision.clear()
        self._checkpoint.close()

    def __enter__(self) -> Self:
        self._gate.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._gate.closed:
            return f"<qwen35.Model {self.name!r} closed>"
        memory = self._native().memory()
        return (
            f"<qwen35.Model {self.name!r}: {self.parameters:,} parameters in "
            f"{len(self.config.text.layer_types)} layers, {memory['weights'] / 2**20:,.1f} MiB, "
            f"dtype {self.dtype}, {self.threads} threads, context {self.context:,}>"
        )

    def _repr_html_(self) -> str:
        from .notebook import model_html

        return model_html(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Model cannot be pickled or copied; share it between threads, or load it in each "
            "process"
        )

    # What streams and sessions need of it

    def _model_gate(self) -> Gate:
        return self._gate

    def _core_session(self, context: int) -> _core.Session:
        self._gate.check()
        return self._native().session(context)

    def _native(self) -> _core.Model:
        if self._core is None:
            raise ClosedError(f"the model {self.name!r} was closed; load it again")
        return self._core

    def _shown(
        self, prompt: Prompt, start: int, stop: int, *, poll: Poll | None = None
    ) -> dict[str, Any]:
        """What goes with prompt.ids[start:stop] into the core: positions, and the features of what
        is seen there. `poll` is called now and then while images are read.
        """
        if prompt.layout is None:
            return {}
        native = self._native()
        features = prompt.layout.features(
            start, stop, lambda media: self._vision.features(native, media, poll=poll)
        )
        return {"position_ids": prompt.position_ids[:, start:stop], "features": features}

    def _new_session(self, context: int | None = None) -> Session:
        return self._adopt(self._core_session(self.context if context is None else context))

    def _adopt(self, core: _core.Session) -> Session:
        session = Session(self, core)
        self._sessions.add(session)
        return session

    def _finished(self, answer: Generation) -> None:
        self._last = answer

    def _stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None,
        fields: dict[str, Any],
        *,
        thinking_budget: int | None = None,
    ) -> TokenStream:
        self._checkpoint.check_unchanged()
        request = make_request(self, prompt, sampling, fields, thinking_budget=thinking_budget)
        stream = TokenStream(self, request)
        self._streams.add(stream)
        return stream
