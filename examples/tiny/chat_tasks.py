"""Tool calls, answers from tool results, and small talk, for `tasks.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import words as w

tasks = sys.modules["tasks"]  # imported by it, last

HERE = Path(__file__).parent
# One tool a line: names | description | parameters as name/synonym:kind | ways to ask, split by
# " / ", with {parameter's first name} filled in. One subject of small talk a line: what people say
# | the answer | the thought before it.
LINES = (HERE / "tools.txt").read_text().splitlines()
CHAT_LINES = (HERE / "chat.txt").read_text().splitlines()

KINDS = {
    "city": (lambda r: r.choice(w.CITIES) if r.random() < 0.9 else w.name(r), "string"),
    "name": (w.name, "string"),
    "int": (lambda r: r.randrange(1, r.choice((10, 100, 100, 1000))), "integer"),
    "hour": (lambda r: r.randrange(1, 24), "integer"),
    "words": (lambda r: " ".join(w.word(r) for _ in range(r.randint(1, 4))), "string"),
    "word": (w.word, "string"),
    "day": (lambda r: r.choice(w.DAYS), "string"),
    "language": (lambda r: r.choice(w.LANGUAGES), "string"),
    "room": (
        lambda r: r.choice("kitchen bedroom office hall garage library attic".split()),
        "string",
    ),
    "color": (lambda r: r.choice(w.COLORS), "string"),
    "file": (lambda r: f"{w.word(r)}.{r.choice(('txt', 'md', 'csv', 'py'))}", "string"),
    "capital": (
        lambda r: r.choice("France Spain Italy Japan Peru Egypt India Poland Norway".split()),
        "string",
    ),
}
GENERIC_VERBS = (
    "find open close start stop check move paint clean show delete read update get set".split()
)
GENERIC_PARAMS = """
code:int size:int count:int color:color room:room owner:name day:day label:word city:city user:name
level:int tag:word
""".split()


def make_tool(rng: Random, line: str) -> tuple[dict, list[tuple[str, str, str]], list[str]]:
    """One tool out of a TOOLS line, names chosen: (schema, [(first name, chosen name, kind)],
    phrasings)."""
    names, description, params, asks = (part.strip() for part in line.split("|"))
    chosen = []
    for param in params.split():
        options, kind = param.split(":")
        options = options.split("/")
        pick = options[0] if rng.random() < 0.6 else rng.choice(options)
        chosen.append((options[0], pick, kind))
    tool_name = names.split()[0] if rng.random() < 0.6 else rng.choice(names.split())
    return schema(rng, tool_name, description, chosen), chosen, asks.split(" / ")


def make_generic(rng: Random) -> tuple[dict, list[tuple[str, str, str]], list[str]]:
    """A tool named verb_noun with parameters that the question names."""
    verb, noun = rng.choice(GENERIC_VERBS), rng.choice(w.OBJECTS + w.WORDS[:60])
    params = [p.split(":") for p in rng.sample(GENERIC_PARAMS, rng.randint(1, 3))]
    chosen = [(p, p, kind) for p, kind in params]
    tail = " and ".join(f"{p} {{{p}}}" for p, _ in params)
    asks = [f"{verb.capitalize()} the {noun} with {tail}.", f"Please {verb} the {noun}, {tail}."]
    return schema(rng, f"{verb}_{noun}", f"{verb.capitalize()} the {noun}.", chosen), chosen, asks


def schema(rng: Random, name: str, description: str, params: list[tuple[str, str, str]]) -> dict:
    """The tool in the usual function-calling form."""
    properties = {pick: {"type": KINDS[kind][1]} for _, pick, kind in params}
    f = {"name": name, "parameters": {"type": "object", "properties": properties}}
    f["parameters"]["required"] = list(properties)
    if rng.random() < 0.7:
        f["description"] = description
    return {"type": "function", "function": f}


def any_tool(rng: Random) -> tuple[dict, list[tuple[str, str, str]], list[str]]:
    """A listed tool or a generic one."""
    return make_generic(rng) if rng.random() < 0.25 else make_tool(rng, rng.choice(LINES))


def call(rng: Random, held: bool) -> tuple[str, list[dict], dict]:
    """(question, tools on offer, call wanted as {name, arguments})."""

    def make() -> tuple[str, object]:
        tool, params, asks = any_tool(rng)
        values = {first: KINDS[kind][0](rng) for first, _, kind in params}
        name = tool["function"]["name"]
        arguments = {pick: values[first] for first, pick, _ in params}
        question = rng.choice(asks).format(**values)
        return f"tool {name} {list(arguments.values())}", (tool, question, arguments)

    tool, question, arguments = tasks.draw(held, make)
    name = tool["function"]["name"]
    offered, taken = [tool], set(name.split("_"))
    for _ in range(rng.randint(0, 2)):
        other, _, _ = any_tool(rng)
        if not taken & set(other["function"]["name"].split("_")) and all(
            o["function"].get("description") != other["function"].get("description", "")
            for o in offered
        ):
            offered.append(other)
            taken |= set(other["function"]["name"].split("_"))
    rng.shuffle(offered)
    return question, offered, {"name": name, "arguments": arguments}


def tool(rng: Random, held: bool, level: float) -> tasks.Example:
    """Call the right one of 1 to 3 tools; one time in ten no tool fits and the question is
    answered."""
    question, offered, wanted = call(rng, held)
    if not held and rng.random() < 0.1:
        plain = tasks.TASKS[rng.choice(("compare", "sort", "reverse", "chat"))](rng, False, level)
        plain.tools = offered
        return plain
    shown = ", ".join(f"{k} = {v}" for k, v in wanted["arguments"].items())
    return tasks.Example(
        "tool",
        tasks.ask(question),
        "",
        f"Use {wanted['name']}: {shown}.",
        tools=offered,
        tool_calls=[{"type": "function", "function": wanted}],
    )


def tool_result(rng: Random, held: bool, level: float) -> tasks.Example:
    """Answer from what a called tool returned: bare text or a one-entry JSON object."""
    question, offered, wanted = call(rng, False)

    def make() -> tuple[str, object]:
        kind = rng.randrange(4)
        if kind == 0:
            value = str(rng.randrange(10 ** rng.choice((1, 2, 3, 4))))
        elif kind == 1:
            value = (
                f"{rng.randrange(-9, 40)} degrees and {rng.choice(('sunny', 'cloudy', 'windy'))}"
            )
        else:
            value = " ".join(w.word(rng) for _ in range(rng.randint(1, 4)))
        return f"tool_result {value}", value

    value = tasks.draw(held, make)
    sent = value
    if rng.random() < 0.3:
        key = rng.choice(("result", "value", "answer", "output"))
        sent = json.dumps({key: int(value) if value.isdigit() else value})
    turn = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": wanted}],
    }
    if rng.random() < 0.5:
        shown = ", ".join(f"{k} = {v}" for k, v in wanted["arguments"].items())
        turn["reasoning_content"] = f"Use {wanted['name']}: {shown}."
    messages = [*tasks.ask(question), turn, {"role": "tool", "content": sent}]
    steps = f"{wanted['name']} returned {value}."
    return tasks.Example("tool_result", messages, f"The answer is {value}.", steps, tools=offered)


def chat(rng: Random, held: bool, level: float) -> tasks.Example:
    """Small talk from a short list."""
    asks, answer, steps = (part.strip() for part in rng.choice(CHAT_LINES).split("|"))
    return tasks.Example("chat", tasks.ask(rng.choice(asks.split(" / "))), answer, steps)


TASKS = {"tool": tool, "tool_result": tool_result, "chat": chat}
