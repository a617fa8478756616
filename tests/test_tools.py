"""Oracle: literals, in the forms of OpenAI's API and of JSON schema."""

import enum
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Optional, Union

import pytest

from qwen35.tools import function_schema, parameter_value, tool_schemas

SPEC = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def f(a: int, b: str = "x") -> None:
    """Do it."""


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def test_forms_that_mean_the_same() -> None:
    assert tool_schemas([SPEC]) == [SPEC]
    assert tool_schemas([SPEC["function"]]) == [SPEC]
    assert tool_schemas([{"type": "function", **SPEC["function"]}]) == [SPEC]
    assert tool_schemas((f,)) == [function_schema(f)]
    assert tool_schemas(None) is None
    assert tool_schemas([]) is None


BAD: list[tuple[Any, str]] = [
    ({"name": "f"}, "tools: expected a list of tools, got dict"),
    ("f", "tools: expected a list"),
    (5, "tools: expected a list"),
    (iter([SPEC]), "tools: expected a list"),
    ([5], r"tools\[0\]: expected a dict or a function, got int"),
    ([SPEC, {"type": "retrieval"}], r"tools\[1\]\.type: 'retrieval', expected \"function\""),
    ([{"type": "function"}], r"tools\[0\]\.function: expected a dict"),
    ([{"function": {}}], r"tools\[0\]\.function\.name: None"),
    ([{"name": "a b"}], r"tools\[0\]\.function\.name: 'a b'"),
    ([{"name": "a>"}], r"tools\[0\]\.function\.name"),
    ([{"name": ""}], r"tools\[0\]\.function\.name"),
    (
        [{"name": "f", "parameters": []}],
        r"tools\[0\]\.function\.parameters: expected a JSON schema",
    ),
    ([SPEC, f], r"tools\[1\]: a second tool named 'f'"),
    ([{"name": f"f{i}"} for i in range(1000)], "tools: 1000 tools, expected at most"),
    ([lambda *args: 1], "have no schema"),
]


@pytest.mark.parametrize(("tools", "message"), BAD)
def test_errors_name_their_place(tools: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tool_schemas(tools)


def test_schema_of_a_function() -> None:
    def weather(city: str, days: int = 3, *, units: Literal["C", "F"] = "C") -> str:
        """Tell the weather,
        as far as it is known.

        More about it.

        Args:
            city: The city, and
                its country.
            days (int): How far ahead.

        Returns:
            text: A text.
        """

    assert function_schema(weather) == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell the weather, as far as it is known.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city, and its country."},
                    "days": {"type": "integer", "description": "How far ahead."},
                    "units": {"type": "string", "enum": ["C", "F"]},
                },
                "required": ["city"],
            },
        },
    }


HINTS: list[tuple[Any, dict[str, Any]]] = [
    (str, {"type": "string"}),
    (int, {"type": "integer"}),
    (float, {"type": "number"}),
    (bool, {"type": "boolean"}),
    (None, {"type": "null"}),
    (Any, {}),
    (list, {"type": "array"}),
    (list[int], {"type": "array", "items": {"type": "integer"}}),
    (Sequence[str], {"type": "array", "items": {"type": "string"}}),
    (dict, {"type": "object"}),
    (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
    (Mapping[str, Any], {"type": "object", "additionalProperties": {}}),
    (Optional[int], {"type": "integer", "nullable": True}),  # noqa: UP045
    (int | None, {"type": "integer", "nullable": True}),
    (Union[int, str], {"anyOf": [{"type": "integer"}, {"type": "string"}]}),  # noqa: UP007
    (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
    (Literal["a", 1], {"enum": ["a", 1]}),
    (Color, {"type": "string", "enum": ["red", "blue"]}),
    (Annotated[int, "x"], {"type": "integer"}),
    (object, {}),
]


@pytest.mark.parametrize(("hint", "schema"), HINTS, ids=[str(h) for h, _ in HINTS])
def test_schema_of_a_type(hint: Any, schema: dict[str, Any]) -> None:
    def tool(x):  # noqa: ANN001
        pass

    tool.__annotations__["x"] = hint
    assert function_schema(tool)["function"]["parameters"]["properties"]["x"] == schema


def test_schema_of_a_method() -> None:
    class Desk:
        def look_up(self, name: str) -> str:
            """Look up."""

    parameters = function_schema(Desk().look_up)["function"]["parameters"]
    assert parameters["required"] == ["name"]


VALUES: list[tuple[str, Any, Any]] = [
    ("12", {"type": "integer"}, 12),
    (" -3 ", {"type": "integer"}, -3),
    ("3.0", {"type": "integer"}, 3),
    ("3.5", {"type": "integer"}, "3.5"),
    ("1e3", {"type": "integer"}, "1e3"),
    ("٣", {"type": "integer"}, "٣"),
    ("1_000", {"type": "integer"}, "1_000"),
    ("12", {"type": "string"}, "12"),
    ("null", {"type": "string"}, "null"),
    ("2.5", {"type": "number"}, 2.5),
    ("2", {"type": "number"}, 2),
    ("-1e-3", {"type": "number"}, -0.001),
    ("nan", {"type": "number"}, "nan"),
    ("true", {"type": "boolean"}, True),
    ("False", {"type": "boolean"}, False),
    ("1", {"type": "boolean"}, "1"),
    ("null", {"type": "null"}, None),
    ("None", {"type": "null"}, None),
    ("[1, 2]", {"type": "array"}, [1, 2]),
    ('{"a": 1}', {"type": "array"}, '{"a": 1}'),
    ('{"a": [true]}', {"type": "object"}, {"a": [True]}),
    ("{'a': 1}", {"type": "object"}, "{'a': 1}"),
    ("[" * 99999, {"type": "array"}, "[" * 99999),
    ("9" * 9999, {"type": "integer"}, "9" * 9999),
    ("12", {}, "12"),
    ("12", None, "12"),
    ("12", {"type": "nonsense"}, "12"),
    ("null", {"type": ["integer", "null"]}, None),
    ("5", {"type": ["string", "integer"]}, 5),
    ("five", {"type": ["string", "integer"]}, "five"),
    ("null", {"type": "integer", "nullable": True}, None),
    ("5", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 5),
    ("null", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
    ("x", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "x"),
    ("[5]", {"oneOf": [{"type": "string"}, {"type": "array"}]}, [5]),
    ("2", {"enum": [1, 2, "3"]}, 2),
    ("3", {"enum": [1, 2, "3"]}, "3"),
    ("true", {"enum": [True, False]}, True),
    ("4", {"enum": [1, 2]}, "4"),
    ("7", {"const": 7}, 7),
    ("5", {"$ref": "#/$defs/count"}, 5),
    ("5", {"anyOf": [{"$ref": "#/$defs/count"}, {"type": "null"}]}, 5),
    ("5", {"$ref": "#/$defs/loop"}, "5"),
    ("5", {"$ref": "#/nowhere"}, "5"),
    ("5", {"$ref": "http://x/y"}, "5"),
]
ROOT = {"$defs": {"count": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}}}


@pytest.mark.parametrize(("text", "schema", "value"), VALUES)
def test_value_of_a_parameter(text: str, schema: Any, value: Any) -> None:
    got = parameter_value(text, schema, ROOT)
    assert got == value and type(got) is type(value)
