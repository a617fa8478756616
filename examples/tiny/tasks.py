"""The questions tiny learns, as chat examples drawn from a seeded generator.

    rng -> task function -> Example(messages, tools, reasoning, answer) -> chat template -> text

Held out: every question has a key made of its content alone (the unordered pair of numbers, the
fact, the set of words, the tool with its argument values), and `held_out(key)` is true for one key
in 20 by BLAKE2. Training draws only keys where it is false, evaluation only keys where it is true;
phrasing and filler play no part.

A new task is one function `(rng, held, level) -> Example` added to `TASKS`; a user message's
content may be a list of parts, as `Model.chat` takes them, with images and videos as arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import words as w

SYSTEMS = (
    "You are a helpful assistant.",
    "You are tiny, a small test model.",
    "Answer briefly.",
    "Be short and correct.",
)


@dataclass
class Example:
    """One conversation up to the assistant's last turn, and that turn.

    `thinking` selects the template's mode; `reasoning` is used only then. `labels` say what each
    image or pair of video frames shows, for the tower's own loss (`scenes.Scene.labels`).
    """

    task: str
    messages: list[dict]
    answer: str
    reasoning: str = ""
    thinking: bool = False
    tools: list[dict] | None = None
    tool_calls: list[dict] | None = None
    labels: list[list] = field(default_factory=list)

    def final(self) -> dict:
        """The assistant's last turn as a message."""
        turn = {"role": "assistant", "content": self.answer}
        if self.thinking:
            turn["reasoning_content"] = self.reasoning
        if self.tool_calls:
            turn["tool_calls"] = self.tool_calls
        return turn


def held_out(key: str) -> bool:
    """True for the one question in 20 that training never sees."""
    return hashlib.blake2s(key.encode(), digest_size=4).digest()[0] % 20 == 0


def draw(held: bool, make: Callable[[], tuple[str, object]]) -> object:
    """Repeat `make() -> (key, value)` until the key falls on the wanted side; the value."""
    while True:
        key, value = make()
        if held_out(key) == held:
            return value


def ask(text: str) -> list[dict]:
    """A conversation of one user message."""
    return [{"role": "user", "content": text}]


def add(rng: Random, held: bool, level: float) -> Example:
    """Sums of two numbers from 0 to 99."""

    def pair() -> tuple[str, object]:
        top = 10 if rng.random() < 0.1 else 100
        a, b = rng.randrange(top), rng.randrange(100)
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        return f"add {min(a, b)} {max(a, b)}", (a, b)

    a, b = draw(held, pair)
    text = rng.choice(
        (
            f"What is {a} + {b}?",
            f"What is {a} + {b}?",
            f"{a} + {b} = ?",
            f"Add {a} and {b}.",
            f"How much is {a} plus {b}?",
            f"Compute {a} + {b}.",
            f"What is {a} plus {b}?",
            f"What is the sum of {a} and {b}?",
        )
    )
    ones, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    tail = " + 1" if carry else ""
    steps = (
        f"{a % 10} + {b % 10} = {ones}. {a // 10} + {b // 10}{tail} = {a // 10 + b // 10 + carry}."
    )
    return Example("add", ask(text), str(a + b), steps)


def compare(rng: Random, held: bool, level: float) -> Example:
    """Which of two different numbers from 0 to 999 is larger or smaller, or a yes/no form of it."""

    def pair() -> tuple[str, object]:
        top = rng.choice((10, 100, 100, 100, 1000))
        a = rng.randrange(top)
        near = rng.random()
        if near < 0.2:
            b = max(0, a + rng.randint(-9, 9))
        elif near < 0.8:
            b = rng.randrange(top)
        else:
            b = rng.randrange(rng.choice((10, 100, 100, 1000)))
        if a == b:
            b = a + 1
        return f"compare {min(a, b)} {max(a, b)}", rng.sample((a, b), 2)

    a, b = draw(held, pair)
    small, big = min(a, b), max(a, b)
    more = rng.random() < 0.5
    adjective = rng.choice(("larger", "bigger", "greater") if more else ("smaller", "less"))
    wanted = big if more else small
    sa, sb = str(a), str(b)
    if len(sa) != len(sb):
        steps = f"{len(sa)} digits and {len(sb)} digits"
    else:
        x, y = next((x, y) for x, y in zip(sa, sb, strict=True) if x != y)
        steps = f"{len(sa)} digits both, {x} {'>' if x > y else '<'} {y}"
    steps += f", so {big} is larger than {small}."
    if rng.random() < 0.15:
        word = "larger" if more else "smaller"
        yes = (a > b) == more
        text = f"Is {a} {word} than {b}?"
        return Example("compare", ask(text), "Yes" if yes else "No", steps)
    text = rng.choice(
        (
            f"Which is {adjective}, {a} or {b}?",
            f"Which number is {adjective}: {a} or {b}?",
            f"Which is {adjective}: {a} or {b}?",
            f"What is {adjective}, {a} or {b}?",
            f"Compare {a} and {b}. Which is {adjective}?",
        )
    )
    return Example("compare", ask(text), str(wanted), steps)


def fact(rng: Random, held: bool) -> tuple[str, str, str]:
    """(sentence, question, answer) of one thing to remember."""

    def make() -> tuple[str, object]:
        who, kind = w.name(rng), rng.randrange(8)
        if kind <= 2:
            thing = rng.choice(("code", "code", "number", "password", "secret code", "room"))
            value = str(rng.randrange(10, 10 ** rng.choice((2, 3, 4, 4))))
            if thing == "password" and rng.random() < 0.5:
                value = w.word(rng)
            if rng.random() < 0.2:
                out = f"The {thing} is {value}.", f"What is the {thing}?", value
            else:
                out = f"The {thing} of {who} is {value}.", f"What is the {thing} of {who}?", value
        elif kind == 3:
            thing = f"{rng.choice(w.COLORS)} {rng.choice(w.OBJECTS)}"
            out = f"{who} has the {thing}.", f"Who has the {thing}?", who
            if rng.random() < 0.5:
                out = out[0], f"What does {who} have?", f"the {thing}"
        elif kind == 4:
            city = rng.choice(w.CITIES)
            out = f"{who} lives in {city}.", f"Where does {who} live?", city
        elif kind == 5:
            fruit = rng.choice(w.FRUITS)
            out = f"{who} likes {fruit}.", f"What does {who} like?", fruit
        elif kind == 6:
            pet, called = rng.choice(w.PETS), w.name(rng)
            out = (
                f"The {pet} of {who} is called {called}.",
                f"What is the {pet} of {who} called?",
                called,
            )
        else:
            called, thing, color = w.name(rng), rng.choice(w.OBJECTS), rng.choice(w.COLORS)
            day = rng.choice(w.DAYS)
            out = rng.choice(
                (
                    (f"My name is {called}.", "What is my name?", called),
                    (f"{who} was born in {called}.", f"Where was {who} born?", called),
                    (
                        f"The color of the {thing} is {color}.",
                        f"What is the color of the {thing}?",
                        color,
                    ),
                    (f"{who} comes on {day}.", f"When does {who} come?", day),
                )
            )
        return "fact " + out[0], out

    return draw(held, make)


def needle(
    rng: Random, held: bool, level: float, before: int = 0, after: int | None = None
) -> Example:
    """A fact among filler sentences, asked for at the end; `before` and `after` set the sentences
    around it."""
    top = 4 if level < 0.08 else 12 if level < 0.35 else 24 if level < 0.6 else 60
    if level > 0.75 and rng.random() < 0.1:
        top = 240
    total = int(round(top ** rng.random())) + rng.randint(0, 2)
    target = fact(rng, held)
    facts = [target]
    for _ in range(rng.randint(0, 3)):
        other = fact(rng, False)
        if all(other[1] != f[1] and other[0].split()[-2:] != f[0].split()[-2:] for f in facts):
            facts.append(other)
    if after is None:
        sentences = [w.filler(rng) for _ in range(total)]
        for f in facts:
            sentences.insert(rng.randint(0, len(sentences)), f[0])
    else:
        sentences = [w.filler(rng) for _ in range(before)]
        for f in facts[1:]:
            sentences.insert(rng.randint(0, len(sentences)), f[0])
        sentences += [target[0], *(w.filler(rng) for _ in range(after))]
    story, messages = " ".join(sentences), []
    form = rng.random()
    if form < 0.15:
        messages = [{"role": "system", "content": story}]
    elif form < 0.3:
        messages = ask(story) + [{"role": "assistant", "content": "OK."}]
    asked = [f for f in facts[1:] if rng.random() < 0.5] if after is None else []
    for i, (_, question, answer) in enumerate([*asked, target]):
        lead = f"{story}{rng.choice((' ', chr(10)))}" if i == 0 and not messages else ""
        messages = messages + ask(lead + question)
        if i < len(asked):
            messages.append({"role": "assistant", "content": answer})
    return Example("needle", messages, target[2], target[0])


def some_words(rng: Random, held: bool, task: str, low: int, top: int, initials: bool) -> list[str]:
    """Distinct words, with distinct first letters if `initials`."""

    def make() -> tuple[str, object]:
        n, out = rng.randint(low, top), []
        while len(out) < n:
            new = w.word(rng)
            if all(new != o and (not initials or new[0] != o[0]) for o in out):
                out.append(new)
        return f"{task} {' '.join(sorted(out))}", out

    return draw(held, make)


def sort(rng: Random, held: bool, level: float) -> Example:
    """3 or 4 words with different first letters, into alphabetical order."""
    got = some_words(rng, held, "sort", 3, 4, True)
    gap = ", " if rng.random() < 0.7 else " "
    text = rng.choice(
        (
            f"Sort these words: {gap.join(got)}.",
            f"Sort these words: {gap.join(got)}",
            f"Sort the words: {gap.join(got)}",
            f"Sort alphabetically: {gap.join(got)}",
            f"Put these words in alphabetical order: {gap.join(got)}.",
        )
    )
    done = sorted(got)
    steps = f"{' '.join(g[0] for g in got)} -> {' '.join(d[0] for d in done)}"
    return Example("sort", ask(text), gap.join(done), steps)


def reverse(rng: Random, held: bool, level: float) -> Example:
    """3 to 5 words in the opposite order."""
    got = some_words(rng, held, "reverse", 3, 5, False)
    gap = " " if rng.random() < 0.7 else ", "
    text = rng.choice(
        (
            f"Reverse the words: {gap.join(got)}",
            f"Reverse the words: {gap.join(got)}.",
            f"Reverse these words: {gap.join(got)}",
            f"Say these words backwards: {gap.join(got)}",
            f"Reverse the order of the words: {gap.join(got)}",
        )
    )
    steps = " ".join(f"{i + 1} {g}" for i, g in enumerate(got))
    return Example("reverse", ask(text), gap.join(got[::-1]), steps)


def copy(rng: Random, held: bool, level: float) -> Example:
    """Repeat a few words or numbers; practice only, not evaluated."""
    got = [
        w.word(rng) if rng.random() < 0.7 else str(rng.randrange(1000))
        for _ in range(rng.randint(1, 6))
    ]
    text = rng.choice(("Repeat: ", "Say this: ", "Repeat after me: ")) + " ".join(got)
    return Example("copy", ask(text), " ".join(got), f"{len(got)} words.")


def example(rng: Random, task: str, *, held: bool, level: float, thinking: bool) -> Example:
    """One example of `task`: the bare question, or one with a system message or an earlier turn
    before it."""
    out = TASKS[task](rng, held, level)
    out.thinking = thinking
    if out.tools is None and task != "needle" and rng.random() < 0.25:
        turns, same = [], task in EARLIER and rng.random() < 0.7
        for _ in range(rng.randint(1, 5 if same else 2)):
            past = TASKS[task if same else rng.choice(EARLIER)](rng, False, level)
            turns += past.messages + [{"role": "assistant", "content": past.answer}]
        out = replace(out, messages=turns + out.messages)
    if out.messages[0]["role"] != "system" and rng.random() < 0.15:
        out.messages = [{"role": "system", "content": rng.choice(SYSTEMS)}, *out.messages]
    return out


EARLIER = ("add", "compare", "sort", "reverse", "chat", "copy")
TASKS: dict[str, Callable[[Random, bool, float], Example]] = {
    "add": add,
    "compare": compare,
    "needle": needle,
    "sort": sort,
    "reverse": reverse,
    "copy": copy,
}
READ = ("add", "compare", "needle", "sort", "reverse", "tool", "tool_result")
SEEN = ("count", "color", "shape", "place", "digit", "moves", "way", "first")
EVALUATED = READ + SEEN

import chat_tasks  # noqa: E402  (these take what is above from this module)
import clips  # noqa: E402
import digits  # noqa: E402
import scenes  # noqa: E402

for module in (chat_tasks, scenes, digits, clips):
    TASKS.update(module.TASKS)
