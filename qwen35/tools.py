"""Tools as chat templates and the answer parser need them: OpenAI's function dicts, checked.

dict or plain Python callable -> {"type": "function", "function": {"name", "description",
"parameters"}}. Also the way back: the text of a parameter -> a value of the type its JSON schema
asks for.
"""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union

MAX_TOOLS = 128
_NAME = re.compile(r"[^\s<>]{1,200}")  # it is written as <function=NAME>
_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_WORDS = {"true": True, "false": False, "null": None, "none": None}  # as templates write Python's


def tool_schemas(tools: Any) -> list[dict[str, Any]] | None:
    """The tools of a request in OpenAI's form; None or none at all give None.

    Accepts that form, bare function dicts ({"name": ..., "parameters": ...}), and callables, whose
    schema is read from signature and docstring. Raises ValueError with the index path of what is
    wrong.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise ValueError(f"tools: expected a list of tools, got {type(tools).__name__}")
    schemas = [_schema(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    if len(schemas) > MAX_TOOLS:
        raise ValueError(f"tools: {len(schemas)} tools, expected at most {MAX_TOOLS}")
    names = [schema["function"]["name"] for schema in schemas]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"tools[{index}]: a second tool named {name!r}")
    return schemas or None


def _schema(tool: Any, path: str) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        tool = dict(tool)
        if "function" not in tool and "name" in tool:
            tool = {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
    elif callable(tool):
        tool = function_schema(tool)
    else:
        raise ValueError(f"{path}: expected a dict or a function, got {type(tool).__name__}")
    if tool.get("type", "function") != "function":
        raise ValueError(f'{path}.type: {tool["type"]!r:.80}, expected "function"')
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise ValueError(
            f"{path}.function: expected a dict with the function's name and parameters"
        )
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{path}.function.name: {name!r:.80}, expected a name without spaces")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ValueError(f"{path}.function.parameters: expected a JSON schema (a dict) or nothing")
    return tool


# Python function -> schema


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """OpenAI's description of a Python function.

    Types come from the annotations, what it does from the first paragraph of its docstring, what
    parameters mean from its "Args:" section. A parameter without annotation takes a value of any
    type, one without default is required.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function)
    except Exception as error:
        raise ValueError(f"tool {name!r}: its signature cannot be read: {error}") from None
    summary, described = _docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(
                f"tool {name!r}: *args and **kwargs have no schema; name its parameters"
            )
        schema = _type_schema(hints.get(parameter.name, Any))
        if parameter.name in described:
            schema["description"] = described[parameter.name]
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    return {
        "type": "function",
        "function": {"name": name, "description": summary, "parameters": parameters},
    }


def _type_schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a type annotation; {} (anything) for what JSON cannot say."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if origin is typing.Annotated:
        return _type_schema(args[0])
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        values = list(args) if origin is Literal else [member.value for member in hint]
        kinds = {_SIMPLE.get(type(value)) for value in values}
        return {"enum": values} if len(kinds) > 1 else {"type": kinds.pop(), "enum": values}
    if origin in (Union, types.UnionType):
        options = [_type_schema(arg) for arg in args if arg is not type(None)]
        schema = options[0] if len(options) == 1 else {"anyOf": options}
        return {**schema, "nullable": True} if type(None) in args else schema
    if (origin or hint) in (list, tuple, set, Sequence, Iterable):
        return {"type": "array", "items": _type_schema(args[0])} if args else {"type": "array"}
    if (origin or hint) in (dict, Mapping):
        values = {"additionalProperties": _type_schema(args[1])} if len(args) == 2 else {}
        return {"type": "object", **values}
    return {}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """First paragraph, and the entries of a Google-style "Args:" section."""
    summary = " ".join(text.split("\n\n")[0].split())
    described: dict[str, str] = {}
    section = re.search(
        r"^(?:Args|Arguments|Parameters):\n((?:[ \t]+.*\n?|\n)+)", text, re.MULTILINE
    )
    lines = inspect.cleandoc("\n" + section[1]).split("\n") if section else []
    name = ""
    for line in lines:
        entry = re.match(r"\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)", line)
        if entry:
            name = entry[1]
            described[name] = entry[2].strip()
        elif name and line.strip():
            described[name] = f"{described[name]} {line.strip()}".strip()
    return summary, described


# Text of a parameter -> value


def parameter_value(text: str, schema: Any, root: Any) -> Any:
    """The value a model meant by `text`, of the type `schema` asks for; the text itself where that
    does not fit.

    `root` is the schema of all parameters, in which "#/..." references are looked up.
    """
    schema = _resolve(schema, root)
    if not isinstance(schema, Mapping):
        return text
    if "const" in schema or isinstance(schema.get("enum"), list):
        for value in schema.get("enum", [schema.get("const")]):
            if text == value or (not isinstance(value, str) and text.strip() == json.dumps(value)):
                return value
    options = [schema]
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            options += [_resolve(option, root) for option in schema[key]]
    kinds: list[Any] = []
    for option in options:
        if isinstance(option, Mapping):
            kind = option.get("type")
            kinds += kind if isinstance(kind, list) else [kind]
            kinds += ["null"] if option.get("nullable") is True else []
    # A string takes any text, so it is asked last.
    for kind in sorted((k for k in kinds if k in _PARSERS), key=list(_PARSERS).index):
        try:
            return _PARSERS[kind](text.strip())
        except (ValueError, KeyError, RecursionError):
            continue
    return text


def _resolve(schema: Any, root: Any) -> Any:
    """Follow a "$ref" inside the schema, a few steps at most."""
    for _ in range(8):
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            return schema
        found: Any = root
        for step in schema["$ref"].removeprefix("#").split("/")[1:]:
            found = found.get(step) if isinstance(found, Mapping) else None
        schema = found
    return None


def _null(text: str) -> None:
    if text.lower() not in ("null", "none"):
        raise ValueError


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,400}(\.0*)?", text):
        raise ValueError
    return int(text.split(".")[0])


def _number(text: str) -> int | float:
    if re.fullmatch(r"[+-]?[0-9]{1,400}", text):
        return int(text)
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError
    return float(text)


def _json_of(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError
        return value

    return parse


_PARSERS: dict[str, Callable[[str], Any]] = {
    "null": _null,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
    "array": _json_of(list),
    "object": _json_of(dict),
}
