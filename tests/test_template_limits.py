"""Oracle: what a template may not do ends in TemplateError, with its line, and without its effect.

Memory is bounded by RLIMIT_AS in a process of its own: a value that is made at all would not fit.
Time is not asserted: a template that is not stopped would run for years.
"""

import resource
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from qwen35 import template_sandbox
from qwen35.chat import ChatTemplate
from qwen35.errors import TemplateError
from qwen35.template_budget import Budget

HI = [{"role": "user", "content": "Hi"}]
BIG = "10**10"


def loop(body: str, times: int = 100) -> str:
    return "{% for i in range(" + str(times) + ") %}" + body + "{% endfor %}"


ENDLESS = {
    "nested loops": loop(loop("", 99999), 99999),
    "nested loops over lists": "{% set l = range(99999)|list %}"
    "{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
    "loop conditions": "{% set l = range(99999)|list %}"
    "{% for a in l %}{% for b in l if b < 0 %}{% endfor %}{% endfor %}",
    "lazy filters": loop("{% for j in range(99999)|map('abs')|select %}{% endfor %}", 99999),
    "calls": "{% set c = cycler(1, 2) %}" + loop(loop("{% set x = c.next() %}", 99999), 99999),
    "macros calling twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "comparisons": "{% set l = range(99999)|list %}" + loop("{% set x = l == l + [] %}", 99999),
    "sum of lists": "{{ range(99999)|list|batch(1)|list|sum(start=[]) }}",
    "recursive loop": "{% for x in [1] * 9 recursive %}"
    "{{ loop([1] * 9) if loop.depth < 20 }}{% endfor %}",
}

LARGE = {
    "times": "{{ 'a' * " + BIG + " }}",
    "times, other way round": "{{ " + BIG + " * 'a' }}",
    "times a list": "{{ ([1] * " + BIG + ")|length }}",
    "times bytes": "{{ ('a'.encode() * " + BIG + ")|length }}",
    "power": "{{ 2 ** (2 ** 40) }}",
    "repeated product": "{% set n = namespace(x=3) %}" + loop("{% set n.x = n.x * n.x %}", 999),
    "repeated sum": "{% set n = namespace(x=3) %}" + loop("{% set n.x = n.x + n.x %}", 99999),
    "percent width": "{{ '%10000000000d' % 1 }}",
    "percent precision": "{{ '%.10000000000f' % 1.5 }}",
    "percent star": "{{ '%*d' % (" + BIG + ", 1) }}",
    "percent many": "{{ ('%s' * 100000) % (('a' * 100000,) * 100000) }}",
    "percent mapping": "{{ ('%(a)s' * 100000) % {'a': 'a' * 100000} }}",
    "format filter": "{{ '%10000000000d'|format(1) }}",
    "format width": "{{ '{:10000000000}'.format(1) }}",
    "format nested width": "{{ '{:{w}}'.format(1, w=" + BIG + ") }}",
    "format many": "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "format_map": "{{ '{a:10000000000}'.format_map({'a': 1}) }}",
    "center method": "{{ 'a'.center(" + BIG + ") }}",
    "center filter": "{{ 'a'|center(" + BIG + ") }}",
    "ljust": "{{ 'a'.ljust(" + BIG + ") }}",
    "zfill": "{{ '1'.zfill(" + BIG + ") }}",
    "expandtabs": "{{ '\t'.expandtabs(" + BIG + ") }}",
    "indent": "{{ 'a\nb'|indent(" + BIG + ") }}",
    "indent many lines": "{{ ('a\n' * 100000)|indent(100000) }}",
    "indent text": "{{ ('a\n' * 100000)|indent('b' * 100000) }}",
    "join filter": "{{ range(99999)|join('b' * 100000) }}",
    "join method": "{{ ('b' * 100000).join(range(99999)|map('string')) }}",
    "replace filter": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "replace method": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "to_bytes": "{{ (1).to_bytes(" + BIG + ", 'big') }}",
    "batch": "{{ [1]|batch(" + BIG + ", 'x')|list }}",
    "slice": "{{ [1]|slice(" + BIG + ")|list }}",
    "round": "{{ 1.5|round(" + BIG + ", 'ceil') }}",
    "tojson indent": "{{ [[[1]]]|tojson(indent=" + BIG + ") }}",
    "tojson separators": "{{ range(99999)|list|tojson(separators=('a' * 100000, ':')) }}",
    "doubling": "{% set n = namespace(s='aaaa') %}" + loop("{% set n.s = n.s ~ n.s %}"),
    "doubling by plus": "{% set n = namespace(s='aaaa') %}" + loop("{% set n.s = n.s + n.s %}"),
    "doubling lists": "{% set n = namespace(s=[1]) %}" + loop("{% set n.s = n.s + n.s %}"),
    "shared lists": "{% set n = namespace(s=[1]) %}"
    + loop("{% set n.s = [n.s, n.s] %}")
    + "{{ n.s }}",
    "shared tuples": "{% set n = namespace(s=1) %}"
    + loop("{% set n.s = (n.s, n.s) %}")
    + "{{ n.s }}",
    "shared dicts": "{% set n = namespace(s=1) %}"
    + loop("{% set n.s = {'a': n.s, 'b': n.s} %}")
    + "{{ n.s|tojson }}",
    "shared dict()": "{% set n = namespace(s=1) %}" + loop("{% set n.s = dict(a=n.s, b=n.s) %}"),
    "long concatenation": "{% set a = 'a' * 9000000 %}{% set b = " + "~".join("a" * 9999) + " %}",
    "output": loop("{{ 'a' * 1000 }}", 99999),
    "literal output": loop("a" * 1000, 99999),
    "output into a block": "{% set x %}" + loop("{{ 'a' * 1000 }}", 99999) * 9 + "{% endset %}",
    "a variable into a block": "{% set a = 'a' * 100000 %}{% set x %}"
    + loop("{{ a }}", 99999)
    + "{% endset %}",
    "literals into a block": "{% set x %}" + loop("a" * 10000, 99999) + "{% endset %}",
    "literals into a macro": "{% macro m() %}"
    + loop("a" * 10000, 99999)
    + "{% endmacro %}{% set x = m() %}",
    "map": "{{ range(99999)|map('center', 100000)|list|length }}",
    "characters": "{{ ('a' * 60000000)|list|length }}",
    "words": "{{ ('a ' * 30000000).split()|length }}",
    "title": "{{ ('a ' * 30000000)|title|length }}",
    "attribute of all": "{{ range(99999)|map(attribute='numerator')|map('center', 99999)|list }}",
}

SLOW = {
    "punycode": "{{ ('é' * 1000000).encode('punycode') }}",
    "strip": "{{ ('a' * 4000000).strip('b' * 4000000) }}",
    "trim": "{{ ('a' * 4000000)|trim('b' * 4000000) }}",
    "rfind": "{{ ('a' * 4000000).rfind('b' + 'a' * 2000000) }}",
    "striptags": "{{ ('<a>'|safe * 2000000).striptags() }}",
    "date": "{{ strftime_now('%c' * 1000000) }}",
    "range": loop("", 10**9),
    "macro calling itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "Budget", partial(Budget, seconds=0.2))
    with pytest.raises(TemplateError, match="took over 0.2 s"):
        ChatTemplate(ENDLESS[name], where="m").render(HI)


@pytest.mark.parametrize("name", SLOW)
def test_slow(name: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(SLOW[name], where="m").render(HI)


def test_large_values_are_not_made() -> None:
    """All in one process with 1.5 GiB of address space; what is over the limits would not fit."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_template_limits import LARGE, render_refused\n"
        "for name in LARGE: render_refused(name)\n"
        "print(len(LARGE), 'refused')"
    )

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))

    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        preexec_fn=limited,
    )
    assert done.stdout == f"{len(LARGE)} refused\n", done.stderr[-2000:]


def render_refused(name: str) -> None:
    """Render one of LARGE; AssertionError unless it ends in TemplateError."""
    try:
        ChatTemplate(LARGE[name], where="m").render(HI)
    except TemplateError:
        return
    except MemoryError:
        raise AssertionError(f"{name}: the value was made") from None
    raise AssertionError(f"{name}: was not refused")


ESCAPES = [
    "{{ lipsum.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}",
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ['']|map('attr', '__class__')|list }}",
    "{{ ['']|map(attribute='__class__')|list }}",
    "{{ ['']|sort(attribute='__class__') }}",
    "{{ ['']|groupby('__class__') }}",
    "{{ ['']|sum(attribute='__class__', start='') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ ('{0.__class__}'|safe).format('') }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ['{0.__class__}']|map(attribute='format')|map('attr', '__call__')|list }}",
    "{{ self.__init__ }}",
    "{{ range.__init__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ (dict).__base__.__subclasses__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__init__ }}",
    "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].__setitem__('role', 'system') }}",
    "{% set n = namespace(a=1) %}{% set n.__class__ = 1 %}",
    "{{ namespace(_x=1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'base' %}",
    "{{ raise_exception('x' * 100) }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes_from_the_sandbox(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    messages = [dict(HI[0])]
    with pytest.raises(TemplateError, match="^m: chat template line 1: "):
        ChatTemplate(source, where="m").render(messages)
    assert not list(tmp_path.iterdir())
    assert messages == HI


BROKEN = {
    "{% if x %}\n\n{{ ": 3,
    "a\n{% for x in %}": 2,
    "\n\n{{ 1|nothing }}": 3,
    "\n{% endif %}": 2,
    "\n{{ a.b.c }}": 2,
    "\n\n{{ 1 / 0 }}": 3,
    "\n{{ none + 1 }}": 2,
    "{# a\n#}\n{{ 'a'|urlize }}": 3,
}


@pytest.mark.parametrize("source", BROKEN)
def test_errors_have_their_line(source: str) -> None:
    with pytest.raises(TemplateError, match=f"^m: chat template line {BROKEN[source]}: "):
        ChatTemplate(source, where="m").render(HI)


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
        "{% for a in [1] %}" * 99 + "{% endfor %}" * 99,
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
        "{{ " + "-" * 99999 + "1 }}",
        "{{ " + "[" * 9999 + "]" * 9999 + " }}",
        "x" * (1 << 20),
    ],
    ids=["brackets", "loops", "conditions", "signs", "lists", "length"],
)
def test_monstrous_sources(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source, where="m").render(HI)


def test_limits_hold_on_any_thread() -> None:
    """A signal would reach the main thread only; and no thread disturbs another."""
    endless = ChatTemplate(ENDLESS["nested loops"], where="m")
    harmless = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", where="m")
    results: list[object] = []

    def run() -> None:
        try:
            endless.render(HI)
        except TemplateError as error:
            results.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    texts = [harmless.render([{"role": "user", "content": str(i)}]) for i in range(50)]
    for thread in threads:
        thread.join()
    assert texts == [str(i) for i in range(50)]
    assert results == ["m: chat template line 1: rendering took over 2 s"] * 2


def test_long_conversations_are_within_the_limits() -> None:
    """The longest context of the family is about 1 MB of text."""
    from chat_templates import QWEN_STYLE

    messages = [{"role": "user", "content": "word " * 200_000}]
    for _ in range(200):
        messages += [{"role": "assistant", "content": "a" * 2000}, {"role": "user", "content": "b"}]
    text = ChatTemplate(QWEN_STYLE, where="m").render(messages)
    assert len(text) > 1_400_000
