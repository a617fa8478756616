"""A Jinja environment for templates nobody has read: they cannot leave the sandbox, nor use much
time or memory.

template source -> syntax tree, rewritten so that loops and literals pass a hook -> code -> text,
under a Budget.

jinja2's ImmutableSandboxedEnvironment keeps a template away from Python's internals but bounds
neither time nor memory. Here every step that a template can repeat or make large passes one of
these places, and each looks at the clock:
    loops                every iteration; the literal text of the body is charged to it
    output expressions   the length of what is written, into macros and set-blocks too
    + * ** % ~           the size of the result is computed before it is made
    calls and filters    the same for those that can make much of little; all results are charged
    [] () {}             the size of the whole structure, shared parts as often as they occur
What lies between two of them is bounded by the size of the source and of the values, so neither a
signal nor a second thread is needed, and rendering works the same on any thread. Filters that write
HTML or are slow on long text are left out.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .template_budget import MAX_OUTPUT_CHARS, Budget, LimitError

MAX_SOURCE_CHARS = 256 << 10

_KEPT_FILTERS = frozenset(
    "abs attr batch capitalize center count d default dictsort e escape first float format groupby"
    " indent int items join last length list lower map max min reject rejectattr replace reverse"
    " round safe select selectattr slice sort string title trim truncate unique upper"
    " wordcount".split()
)


class _Each:
    """What a for-statement iterates: the items of `values`, `chars` charged for each; sized when
    `values` is."""

    def __init__(self, values: Any, budget: Budget, chars: int):
        self._values, self._budget, self._chars = values, budget, chars

    def __iter__(self) -> Iterator[Any]:
        return self._budget.each(self._values, self._chars)

    def __len__(self) -> int:
        return len(self._values)


class _Rewriter(NodeTransformer):
    """Sends loops, concatenations and literals through filters whose names no template can
    write."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        chars = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _through(" each", node.iter, nodes.Const(chars, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through(" join", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        # A tuple may also be what a for or set assigns to.
        return node if getattr(node, "ctx", "load") != "load" else _through(" made", node)

    visit_Tuple = visit_Dict = visit_List


def _through(name: str, node: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks an assistant's text for training; here it is
    only a scope."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """jinja2's namespace without underscore names, and with a repr that does not grow with its
    contents."""

    def __init__(
        *args: Any, **kwargs: Any
    ) -> None:  # as in jinja2, so that namespace(self=...) works
        Namespace.__init__(args[0])
        for name, value in dict(*args[1:], **kwargs).items():
            args[0][name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}: underscore names are refused")
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<namespace>"


class _Formatter(SandboxedFormatter):
    """str.format with the size of every field checked before it is made."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        budget: Budget = self._env.budget
        budget.before_percent(format_spec, ())  # the same widths and precisions
        budget.weight(value)
        return budget.made(super().format_field(value, format_spec))


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """What chat templates may use, bounded by `budget`, which is set for each rendering and is each
    thread's own."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # compiling computes nothing, so it needs no budget
            finalize=_emit,
            extensions=[jinja2.ext.loopcontrols, _Generation],
        )
        self._local = threading.local()
        kept = {name: f for name, f in self.filters.items() if name in _KEPT_FILTERS}
        kept["tojson"] = _tojson
        self.filters = {name: self._bounded(name, function) for name, function in kept.items()}
        self.filters["sum"] = _sum
        self.filters[" each"] = lambda values, chars: _Each(values, self.budget, chars)
        self.filters[" join"] = self._join
        self.filters[" made"] = lambda value: self.budget.made(value)
        del self.globals["lipsum"]
        self.globals["dict"] = lambda *args, **kwargs: dict(
            *args, **kwargs
        )  # a class has attributes
        self.globals["namespace"] = _Namespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    @property
    def budget(self) -> Budget:
        return self._local.budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        self._local.budget = budget

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Rewriter().visit(super()._parse(source, name, filename))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(
            f"access to attribute {attribute!r} of a {type(obj).__name__} is refused"
        )

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text = value.__self__

        def format_bounded(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                (kwargs,), args = args, ()
            return type(text)(_Formatter(self).vformat(text, args, kwargs))

        return format_bounded

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.before_binop(operator, left, right)
        return self.budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = __self.budget
        budget.tick()
        if isinstance(__obj, LoopContext) and args:  # a recursive loop goes one level down
            args = (_Each(args[0], budget, 0), *args[1:])
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, (str, bytes, int)):
            if name == "join" and args:
                args = (budget.listed(args[0]), *args[1:])
            budget.before_method(owner, name, args, kwargs)
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0  # context, environment or the like

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            passed, given = args[:skip], list(args[skip:])
            self.budget.tick()
            self.budget.before_filter(name, given, kwargs)
            return self.budget.made(function(*passed, *given, **kwargs))

        return bounded

    def _join(self, parts: list[Any]) -> str:
        self.budget.need(sum(map(self.budget.weight, parts)))
        return self.budget.made("".join(map(str, parts)))


@jinja2.pass_context
def _emit(context: Any, value: Any) -> str:
    budget: Budget = context.environment.budget
    if not isinstance(value, str):
        budget.need(budget.weight(value))
        value = str(value)
    budget.charge(len(value))
    return value


@jinja2.pass_environment
def _sum(environment: ChatEnvironment, values: Any, attribute: Any = None, start: Any = 0) -> Any:
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    for value in environment.budget.each(values, 0):
        start = environment.call_binop(None, "+", start, value)
    return start


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As transformers gives it to chat templates: no HTML escapes, letters as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:1000])


def _strftime_now(format: str) -> str:
    if len(format) > 256:
        raise LimitError("strftime_now: a format of over 256 characters")
    return datetime.now().strftime(format)


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The text of `template`, within the limits: LimitError when it runs over one, or whatever it
    raises."""
    environment: Any = template.environment
    environment.budget = budget = Budget()
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(variables):
            budget.tick()
            pieces.append(piece)
            length += len(piece)
            if length > MAX_OUTPUT_CHARS:
                raise LimitError(f"output of over {MAX_OUTPUT_CHARS >> 20} MiB")
    finally:
        environment.budget = None
    return "".join(pieces)
