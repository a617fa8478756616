"""Images and videos through the public API. Oracles: literals worked out by hand from
transformers' get_rope_index and Qwen3VLProcessor, and equality of answers that must not differ
(parity tests hold the numbers against transformers).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TOKEN_IDS, write_checkpoint

import qwen35
from qwen35.session import Session
from qwen35.session_file import write_session

IMAGE, VIDEO = TOKEN_IDS["<|image_pad|>"], TOKEN_IDS["<|video_pad|>"]
START, END = TOKEN_IDS["<|vision_start|>"], TOKEN_IDS["<|vision_end|>"]
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "enable_thinking": False}
SMALL = {"size": {"shortest_edge": 1024, "longest_edge": 2**20}}


def picture(seed: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ask(*parts: Any) -> list[dict[str, Any]]:
    content = [
        {"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p}
        for p in parts
    ]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    return write_checkpoint(folder, dtype="float32", preprocessor=SMALL)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[qwen35.Model]:
    with qwen35.load(folder, dtype="float32", context=600) as loaded:
        yield loaded


def test_an_image_takes_its_tokens_and_positions(model: qwen35.Model) -> None:
    """64 x 96 pixels are 4 x 6 patches, 2 x 3 tokens; text goes on behind the larger side."""
    ids = [7, START, IMAGE, END, 8]
    prompt = model.prompt(ids, images=[picture(0)])
    assert prompt.ids.tolist() == [7, START, *[IMAGE] * 6, END, 8]
    assert prompt.position_ids.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    (image,) = prompt.images
    assert (image.grid_thw, image.pixels.shape) == ((1, 4, 6), (24, 1536))
    whole = model.prompt([7, START, *[IMAGE] * 6, END, 8], images=[picture(0)])
    assert np.array_equal(whole.ids, prompt.ids)


def test_a_video_is_written_with_its_times(model: qwen35.Model) -> None:
    """Three frames at 2 fps: the last one pairs with itself, so 0.25 and 1.0 seconds."""
    frames = np.stack([picture(i, 32, 64) for i in range(3)])
    prompt = model.prompt([VIDEO], videos=[{"video": frames, "fps": 2}])
    times = [model.tokenize(f"<{t} seconds>") for t in ("0.2", "1.0")]
    expected = [token for time in times for token in [*time, START, VIDEO, VIDEO, END]]
    assert prompt.ids.tolist() == expected
    assert prompt.videos[0].timestamps == (0.25, 1.0)
    n = len(times[0])
    assert prompt.position_ids[:, n : n + 5].tolist() == [
        [n, n + 1, n + 1, n + 3, n + 4],
        [n, n + 1, n + 1, n + 3, n + 4],
        [n, n + 1, n + 2, n + 3, n + 4],
    ]


def test_media_go_before_a_text_or_where_it_says(model: qwen35.Model) -> None:
    before = model.prompt("ab", images=[picture(0)])
    assert before.ids.tolist() == [START, *[IMAGE] * 6, END, *model.tokenize("ab")]
    spelled = model.prompt("a<|vision_start|><|image_pad|><|vision_end|>b", images=[picture(0)])
    inside = [START, *[IMAGE] * 6, END]
    assert spelled.ids.tolist() == [*model.tokenize("a"), *inside, *model.tokenize("b")]
    assert IMAGE not in model.prompt("a<|image_pad|>b").ids


def test_what_is_seen_changes_the_answer(model: qwen35.Model) -> None:
    one, other = (model.logits(model.prompt(ask(picture(i), "a"))) for i in (1, 2))
    assert abs(one[-1] - other[-1]).max() > 1e-3
    again = model.logits([START, IMAGE, END], images=[picture(1)], last_only=True)
    assert np.array_equal(again[0], model.logits([START, IMAGE, END], images=[picture(1)])[-1])


def test_an_image_asked_about_twice_is_encoded_once(
    model: qwen35.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    core = model._core

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def encode_vision(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return core.encode_vision(*args, **kwargs)

    monkeypatch.setattr(model, "_core", Counting())
    shown = picture(11)
    for question in ("a", "b"):
        model.chat(ask(shown, question), max_tokens=2, **GREEDY).result()
    model.chat(ask(np.asfortranarray(shown), "c"), max_tokens=2, **GREEDY).result()
    assert len(calls) == 1
    model.chat(ask(shown[:, ::-1], "a"), max_tokens=2, **GREEDY).result()
    model.chat(ask(picture(11, 96, 64), "a"), max_tokens=2, **GREEDY).result()
    assert len(calls) == 3


def test_the_past_is_reused_only_where_the_pictures_agree(model: qwen35.Model) -> None:
    """Cached or not, the answer is that of a fresh model."""
    first = model.chat(ask(picture(21), "tell me more of it"), max_tokens=6, **GREEDY).result()
    same = model.chat(ask(picture(21), "tell me more of it"), max_tokens=6, **GREEDY).result()
    other = model.chat(ask(picture(22), "tell me more of it"), max_tokens=6, **GREEDY).result()
    assert same.token_ids == first.token_ids
    assert same.usage.cached_tokens > 10
    assert other.usage.cached_tokens < 6
    with qwen35.load(model._checkpoint.path, dtype="float32", context=600) as fresh:
        alone = fresh.chat(ask(picture(22), "tell me more of it"), max_tokens=6, **GREEDY).result()
    assert other.token_ids == alone.token_ids


def test_images_across_turns(model: qwen35.Model) -> None:
    """The second turn starts from the first one's session."""
    turns = ask(picture(31), "one")
    answer = model.chat(turns, max_tokens=4, **GREEDY).result()
    turns += [{"role": "assistant", "content": answer.text}, *ask(picture(32), "two")]
    second = model.chat(turns, max_tokens=4, **GREEDY).result()
    prompt = model.prompt(turns, enable_thinking=False)
    assert [one.kind for one in prompt.images] == ["image", "image"]
    logits = model.logits(prompt, last_only=True)[0]
    assert second.token_ids[0] == int(logits.argmax())
    assert second.usage.cached_tokens > 0


def test_sessions_remember_what_was_shown(model: qwen35.Model, tmp_path: Path) -> None:
    prompt = model.prompt(ask(picture(41), "a"))
    changed = model.prompt(ask(picture(42), "a"))
    session: Session = model.session()
    assert session.sync(prompt) == 0
    point = session.snapshot()
    session.save(tmp_path / "s")
    fork = session.fork()
    loaded = model.session()
    loaded.load(tmp_path / "s")
    for one in (session, fork, loaded):
        assert one.sync(prompt) == len(prompt)
    assert loaded.sync(changed) < len(prompt) - 6
    assert np.allclose(loaded.logits, model.logits(changed, last_only=True)[0], atol=1e-4)
    session.sync([5, 6])
    session.restore(point)
    assert session.sync(prompt) == len(prompt)


def test_a_session_file_with_foreign_keys_is_refused(model: qwen35.Model, tmp_path: Path) -> None:
    """Well-formed but for keys that are none: named, and the session stays as it was."""
    session: Session = model.session()
    session.sync([5, 6])
    arrays = {**session._core.dump(), "keys": np.zeros((2, 2), np.float32)}
    path = tmp_path / "s"
    write_session(path, arrays, fingerprint=model._checkpoint.fingerprint())
    with pytest.raises(qwen35.ModelFormatError, match=r"keys of float32 \[2, 2\]"):
        session.load(path)
    assert session.ids.tolist() == [5, 6]


def test_scoring_behind_an_image(model: qwen35.Model) -> None:
    """log-softmax of the logits behind the prompt."""
    prompt = model.prompt(ask(picture(51), "a"))
    logits = model.logits(prompt, last_only=True)[0].astype(float)
    (score,) = model.score(prompt, [[9]])
    expected = logits[9] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert score.logprob == pytest.approx(expected, abs=1e-4)


def test_embed_image(model: qwen35.Model) -> None:
    embedding = model.embed_image(picture(0))
    assert (embedding.shape, embedding.dtype) == ((6, 72), np.float32)
    larger = model.embed_image({"image": picture(0), "min_pixels": 64 * 96 * 4})
    assert larger.shape == (24, 72)


def test_options_of_a_part(model: qwen35.Model) -> None:
    part = {"type": "image", "image": picture(0), "max_pixels": 4096}
    prompt = model.prompt([{"role": "user", "content": [part]}])
    assert prompt.images[0].tokens == 2
    for bad, match in [
        ({"type": "image", "image": picture(0), "max_pixel": 9}, r"content\[0\].*did you mean"),
        ({"type": "image", "image": picture(0), "fps": 9}, r"content\[0\]: unknown key 'fps'"),
        ({"type": "video", "image": picture(0)}, r"content\[0\]\.video: missing"),
    ]:
        with pytest.raises(ValueError, match=match):
            model.chat([{"role": "user", "content": [bad]}])


def test_counts_must_match(model: qwen35.Model) -> None:
    """Item 89 of the hostile inputs, and its kin."""
    with pytest.raises(ValueError, match=r"2 image placeholders \(token \d+\) and 1 images"):
        model.generate([IMAGE, 5, IMAGE], images=[picture(0)])
    with pytest.raises(ValueError, match="0 image placeholders .* and 1 images"):
        model.generate([5, 6], images=[picture(0)])
    with pytest.raises(ValueError, match=r"prompt\[0\]: 3 image placeholders in a row"):
        model.generate([IMAGE] * 3, images=[picture(0)])
    with pytest.raises(ValueError, match="1 image placeholders .* pass them as images"):
        model.generate([IMAGE])
    with pytest.raises(TypeError, match="images: expected a list"):
        model.generate("a", images=picture(0))
    with pytest.raises(ValueError, match="holds its own images"):
        model.generate(model.prompt("a"), images=[picture(0)])


def test_limits(folder: Path, model: qwen35.Model) -> None:
    """Items 77 and 78: too many, and more tokens than the context."""
    with pytest.raises(ValueError, match="257 images and videos in one request, at most 256"):
        model.generate("a", images=[picture(0)] * 257)
    large = picture(0, 640, 640)
    with pytest.raises(qwen35.ContextLengthError, match="image 1: 400, image 2: 400"):
        model.generate("a", images=[large, large])
    limits = qwen35.MediaLimits(image_pixels=1000)
    with qwen35.load(folder, media_limits=limits) as strict:
        with pytest.raises(qwen35.MediaError, match=r"images\[0\].*expected at most 1,000"):
            strict.generate("a", images=[picture(0)])
    with pytest.raises(TypeError, match="media_limits: expected a qwen35.MediaLimits"):
        qwen35.load(folder, media_limits={"images": 3})


def test_without_the_tower(folder: Path) -> None:
    with qwen35.load(folder, vision=False) as blind:
        assert blind._core.feature_shape is None
        with pytest.raises(qwen35.UnsupportedModelError, match="vision=False"):
            blind.chat(ask(picture(0), "a"))
        assert blind.chat("a", max_tokens=1, **GREEDY).result().token_ids


def test_cancel_while_an_image_is_read(model: qwen35.Model, monkeypatch: Any) -> None:
    """cancel() reaches the tower through poll: no token, and the model goes on."""
    stream = model.chat(ask(picture(61), "a"), max_tokens=2, **GREEDY)
    real = model._vision.features

    def slow(core: Any, media: Any, *, poll: Any = None) -> Any:
        stream.cancel()
        poll()
        return real(core, media, poll=poll)

    monkeypatch.setattr(model._vision, "features", slow)
    result = stream.result()
    assert (result.finish_reason, result.token_ids) == ("cancelled", [])
    monkeypatch.undo()
    assert model.chat(ask(picture(61), "a"), max_tokens=2, **GREEDY).result().token_ids
