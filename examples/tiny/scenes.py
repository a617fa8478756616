"""Scenes of coloured shapes on a plain background, and what can be asked about them.

Held out: the set of (colour, shape) names in a scene; where they lie, their sizes, the background
and the canvas play no part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

import numpy as np

tasks = sys.modules["tasks"]  # imported by it, last

SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = {s: s + ("es" if s == "cross" else "s") for s in SHAPES}
COLORS = {
    "red": (215, 35, 35),
    "green": (35, 165, 60),
    "blue": (45, 75, 220),
    "yellow": (240, 225, 50),
    "purple": (150, 55, 190),
    "orange": (240, 135, 25),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}
SIDES = (64, 96, 128)
APART = 12  # pixels between two centres that a question about their order needs, along its axis
Question = tuple[str, str, str]  # what is asked, the answer, the thought before it


@dataclass(frozen=True)
class Thing:
    """One shape: its centre and its width in pixels."""

    color: str
    shape: str
    x: float
    y: float
    size: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Label:
    """What is to be told of one thing in one image or pair of video frames; `batches.targets`."""

    kinds: tuple[int, ...]  # the numbers of its colour and its shape, or of the digit
    name: str = ""
    at: tuple[float, float] | None = None  # x, y of its centre as shares of the canvas
    step: tuple[float, float] = (0.0, 0.0)  # pixels it moves within the pair
    alike: tuple[int, int, int] | None = None  # things of its colour, of its shape, and at all


@dataclass
class Scene:
    """Things on a canvas of height x width pixels."""

    height: int
    width: int
    things: list[Thing]

    def labels(self, before: Scene | None = None) -> list[Label]:
        """A label for every thing; `before` is the pair's earlier frame."""
        known, was = [*COLORS, *SHAPES], {t.name: t for t in (before or self).things}
        out = []
        for t in self.things:
            start = was.get(t.name, t) if before else t
            alike = [[getattr(o, n) for o in self.things] for n in ("color", "shape")]
            out.append(
                Label(
                    (known.index(t.color), known.index(t.shape)),
                    t.name,
                    (t.x / self.width, t.y / self.height),
                    (t.x - start.x, t.y - start.y),
                    (alike[0].count(t.color), alike[1].count(t.shape), len(self.things)),
                )
            )
        return out

    def reading(self, things: Iterable[Thing]) -> list[str]:
        """Names in reading order: by rows of the model's blocks, each from left to right."""
        rows = max(1, round(self.height / 32))
        return [t.name for t in sorted(things, key=lambda t: (int(t.y / self.height * rows), t.x))]


def distance(thing: Thing, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pixels from the edge of a thing, negative inside."""
    dx, dy, r = np.abs(x - thing.x), y - thing.y, thing.size / 2
    if thing.shape == "circle":
        return np.hypot(dx, dy) - r
    if thing.shape == "square":
        return np.maximum(dx, np.abs(dy)) - 0.9 * r
    if thing.shape == "triangle":
        return np.maximum(dy - r, 0.894 * (dx - (dy + r) / 2))
    upright = np.maximum(dx - r / 3, np.abs(dy) - r)
    return np.minimum(upright, np.maximum(dx - r, np.abs(dy) - r / 3))


def paint(canvas: np.ndarray, thing: Thing, color: np.ndarray) -> None:
    """Draw a thing with smooth edges onto canvas [H, W, 3] f32."""
    H, W, _ = canvas.shape
    r = thing.size / 2 + 1
    top, left = max(0, int(thing.y - r)), max(0, int(thing.x - r))
    bottom, right = min(H, int(thing.y + r) + 2), min(W, int(thing.x + r) + 2)
    x = np.arange(left, right, dtype=np.float32) + 0.5
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5
    share = np.clip(0.5 - distance(thing, x, y), 0, 1)[..., None]
    part = canvas[top:bottom, left:right]
    part += share * (color - part)


def background(rng: Random) -> np.ndarray:
    """A tinted gray, [3] f32."""
    level = rng.uniform(70, 185)
    return np.array([level + rng.uniform(-25, 25) for _ in range(3)], np.float32)


def tone(rng: Random, thing: Thing) -> np.ndarray:
    """The thing's colour, a little off, [3] f32."""
    return np.array([c + rng.uniform(-15, 15) for c in COLORS[thing.color]], np.float32)


def finish(rng: Random, canvas: np.ndarray) -> np.ndarray:
    """Canvas as uint8, in half of the cases with noise."""
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.getrandbits(32))
        canvas = canvas + noise.standard_normal(canvas.shape, np.float32) * rng.uniform(1, 6)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def render(rng: Random, scene: Scene) -> np.ndarray:
    """The scene as [H, W, 3] uint8."""
    canvas = np.empty((scene.height, scene.width, 3), np.float32)
    canvas[:] = background(rng)
    for thing in scene.things:
        paint(canvas, thing, tone(rng, thing))
    return finish(rng, canvas)


def sides(rng: Random) -> tuple[int, int]:
    """Canvas height and width: mostly multiples of 32, else any from 56 to 160."""
    if rng.random() < 0.7:
        return rng.choice(SIDES), rng.choice(SIDES)
    first = rng.randint(56, 160)
    return first, min(160, max(56, round(first * rng.uniform(0.6, 1.6))))


def names(rng: Random, n: int) -> list[tuple[str, str]]:
    """n (colour, shape) pairs that may repeat."""
    colors = rng.sample(list(COLORS), rng.randint(1, min(n, 4)))
    shapes = rng.sample(SHAPES, rng.randint(1, 3))
    return [(rng.choice(colors), rng.choice(shapes)) for _ in range(n)]


def place(rng: Random, height: int, width: int, what: Iterable[tuple[str, str]]) -> Scene | None:
    """The things at places where none touches another; None where they do not fit."""
    scale = max(1.0, min(1.6, (height * width) ** 0.5 / 80))
    things: list[Thing] = []
    for color, shape in what:
        for _ in range(60):
            size = rng.uniform(15, 26) * scale
            x = rng.uniform(size / 2, width - size / 2)
            y = rng.uniform(size / 2, height - size / 2)
            if all(max(abs(x - t.x), abs(y - t.y)) > (size + t.size) / 2 + 3 for t in things):
                things.append(Thing(color, shape, x, y, size))
                break
        else:
            return None
    return Scene(height, width, things)


def make(rng: Random, held: bool, low: int, top: int) -> Scene:
    """A scene of low to top things from the wanted side of the held-out rule."""

    def one() -> tuple[str, object]:
        what = names(rng, rng.randint(low, top))
        return "scene " + ", ".join(sorted(f"{c} {s}" for c, s in what)), what

    while True:
        scene = place(rng, *sides(rng), tasks.draw(held, one))
        if scene is not None:
            return scene


def count(rng: Random, scene: Scene) -> Question | None:
    """How many things, or how many of a colour or shape."""
    kind = rng.random()
    if kind < 0.35:
        hits, what = scene.things, "objects"
    elif kind < 0.75:
        near = {t.shape for t in scene.things}
        shape = rng.choice(sorted(near)) if rng.random() < 0.85 else rng.choice(SHAPES)
        hits, what = [t for t in scene.things if t.shape == shape], PLURALS[shape]
    else:
        near = {t.color for t in scene.things}
        color = rng.choice(sorted(near)) if rng.random() < 0.85 else rng.choice(list(COLORS))
        hits, what = [t for t in scene.things if t.color == color], f"{color} objects"
    text = rng.choice((f"How many {what} are there?", f"How many {what} do you see?"))
    return text, str(len(hits)), ", ".join(scene.reading(hits)) or "none"


def only(scene: Scene, attribute: str) -> list[Thing]:
    """Things that are alone in having their colour, shape or name."""
    values = [getattr(t, attribute) for t in scene.things]
    return [t for t in scene.things if values.count(getattr(t, attribute)) == 1]


def color(rng: Random, scene: Scene) -> Question | None:
    """The colour of the only thing of a shape."""
    if not (candidates := only(scene, "shape")):
        return None
    t = rng.choice(candidates)
    text = rng.choice((f"What color is the {t.shape}?", f"What is the color of the {t.shape}?"))
    return text, t.color, f"a {t.name}"


def shape(rng: Random, scene: Scene) -> Question | None:
    """The shape of the only thing of a colour."""
    if not (candidates := only(scene, "color")):
        return None
    t = rng.choice(candidates)
    text = rng.choice(
        (f"What shape is the {t.color} object?", f"What is the shape of the {t.color} object?")
    )
    return text, t.shape, f"a {t.name}"


def relation(rng: Random, scene: Scene) -> Question | None:
    """How two things lie to each other, or what lies on one side of a thing."""
    axis, low, high = rng.choice((("x", "left of", "right of"), ("y", "above", "below")))
    at = {t: getattr(t, axis) for t in scene.things}
    a, b = rng.choice(scene.things), rng.choice(only(scene, "name") or scene.things)
    if abs(at[a] - at[b]) < APART or a.name == b.name:
        return None
    true, false = (low, high) if at[a] < at[b] else (high, low)
    thought = f"The {a.name} is {true} the {b.name}."
    side = 1 if true == low else -1
    rest = [side * (at[t] - at[b]) for t in scene.things if t not in (a, b)]
    if all(d > APART / 2 for d in rest) and rng.random() < 0.4:
        return f"What is {true} the {b.name}?", a.name, thought
    if a not in only(scene, "name"):
        return None
    if rng.random() < 0.5:
        both = f"{low.removesuffix(' of')} or {high}"
        return f"Is the {a.name} {both} the {b.name}?", true.removesuffix(" of"), thought
    asked = rng.choice((true, false))
    return f"Is the {a.name} {asked} the {b.name}?", "Yes" if asked == true else "No", thought


def describe(rng: Random, scene: Scene) -> Question | None:
    """All names in reading order; practice only."""
    listed = ", ".join(scene.reading(scene.things))
    return rng.choice(("What do you see?", "What is in the image?")), listed, "From top to bottom."


def where(rng: Random, scene: Scene) -> Question | None:
    """The corner a thing lies towards; practice only."""
    things = [
        t
        for t in only(scene, "name")
        if min(abs(t.x / scene.width - 0.5), abs(t.y / scene.height - 0.5)) > 0.07
    ]
    if not things:
        return None
    t = rng.choice(things)
    across, down = t.x < scene.width / 2, t.y < scene.height / 2
    corner = f"{'top' if down else 'bottom'} {'left' if across else 'right'}"
    return f"Where is the {t.name}?", corner, f"The {t.name} is at the {corner}."


QUESTIONS = {
    "count": count,
    "color": color,
    "shape": shape,
    "place": relation,
    "describe": describe,
    "where": where,
}


def conversation(task: str, seen: dict, asked: list[Question], frames: list[list]) -> tasks.Example:
    """Questions about one image or video, shown with the first; the last is the one that counts."""
    messages: list[dict] = []
    for i, (text, answer, _) in enumerate(asked):
        content = text if i else [seen, {"type": "text", "text": text}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    _, answer, thought = asked[-1]
    return tasks.Example(task, messages[:-1], answer, thought, labels=frames)


def ask_about(rng: Random, subject, task: str, questions: dict, most: int) -> list[Question] | None:
    """Up to `most` questions about a subject, then the one of `task`; None where it has none."""
    last = next(filter(None, (questions[task](rng, subject) for _ in range(4))), None)
    if last is None:
        return None
    others = (questions[rng.choice(list(questions))](rng, subject) for _ in range(most))
    earlier = [q for q in dict.fromkeys(others) if q and q[0] != last[0]]
    return [*earlier, last]


def task(name: str) -> Callable[[Random, bool, float], tasks.Example]:
    """The task that asks question `name` about a scene; training asks others before it."""

    def build(rng: Random, held: bool, level: float) -> tasks.Example:
        low, top = (2, 3) if name == "place" else (1, 4)
        while True:
            scene = make(rng, held, low, top)
            most = 0 if held or rng.random() < 0.25 else rng.randint(1, 5)
            if asked := ask_about(rng, scene, name, QUESTIONS, most):
                part = {"type": "image", "image": render(rng, scene)}
                return conversation(name, part, asked, [scene.labels()])

    return build


TASKS = {name: task(name) for name in QUESTIONS}
