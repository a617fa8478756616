"""Oracle: the rules of the house, read from the sources: who may include whom, what the core never
does, what is documented.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
CSRC = HOME / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".c", ".h", ".inl"})

# Floors of the house, ground floor first. A file includes headers of its own floor or below.
FLOORS = (
    {"status", "formats", "formats_iq", "iq_grids", "encode", "encode_fit", "compensate", "block"},
    {"mem", "cpu", "threads"},
    {"kernels/"},
    {"qwen35"},
    {"weights", "pack"},
    {"linear", "fixed", "norm_rope"},
    {"screen"},
    {"trial"},
    {"kv", "cache", "scratch.h", "span"},
    {"attend", "attention", "deltanet", "mlp", "vision"},
    {"model", "mtp", "scratch.c"},  # scratch.c asks every part how much it wants
    {"session", "sample"},
    {"draw"},
    {"batch"},
    {"py/"},
)


def name_of(path: Path) -> str:
    return path.relative_to(CSRC).as_posix()


def floor_of(name: str) -> int:
    """Which floor a file of csrc lives on, by its folder, name or stem."""
    folder, _, file = name.rpartition("/")
    keys = {folder + "/"} if folder else {file, file.partition(".")[0]}
    for level, rooms in enumerate(FLOORS):
        if keys & rooms:
            return level
    raise LookupError(f"csrc/{name} is on no floor: add it to FLOORS in {Path(__file__).name}")


def own_includes(path: Path) -> list[str]:
    """The csrc files that a source includes, as paths below csrc."""
    names = re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE)
    return [name_of((path.parent / n).resolve()) for n in names]


def without_comments(text: str) -> str:
    """C text with comments and the insides of strings blanked, line numbers kept."""

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        return '""' if found.startswith('"') else "\n" * found.count("\n")

    return re.sub(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"", blank, text, flags=re.DOTALL)


def calls(path: Path, names: str) -> list[str]:
    """file:line of every use of one of the functions (a regular expression) in a source."""
    text = without_comments(path.read_text())
    return [
        f"{name_of(path)}:{text.count(chr(10), 0, m.start()) + 1}: {m.group()}"
        for m in re.finditer(rf"(?<![\w>.])(?:{names})\s*\(", text)
    ]


# ---- csrc ----------------------------------------------------------------------------------------


def test_there_is_something_to_read() -> None:
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_includes_point_down(path: Path) -> None:
    level = floor_of(name_of(path))
    up = [n for n in own_includes(path) if floor_of(n) > level]
    assert not up, f"{name_of(path)} includes {up} from a higher floor"


def test_binding_sees_only_the_public_header() -> None:
    """py/testing.c alone may look inside: it exists to call each kernel and product."""
    allowed = {"qwen35.h"}
    for path in sorted((CSRC / "py").glob("*")):
        more = {"trial.h"} if path.name == "testing.c" else set()
        strange = [
            n for n in own_includes(path) if not n.startswith("py/") and n not in allowed | more
        ]
        assert not strange, f"{name_of(path)} includes {strange}"


def test_kernels_know_nothing_above_libc() -> None:
    allowed = {"kernels/", "formats.h", "cpu.h"}
    for path in sorted((CSRC / "kernels").glob("*")):
        strange = [n for n in own_includes(path) if not any(n.startswith(a) for a in allowed)]
        assert not strange, f"{name_of(path)} includes {strange}"
        if path.name != "table.c":
            assert "cpu.h" not in own_includes(path), (
                f"{name_of(path)} asks the processor: only table.c does"
            )
        assert not calls(path, r"malloc|calloc|realloc|free|aligned_alloc|pthread_\w+"), name_of(
            path
        )


def test_one_file_starts_threads_and_one_knows_blas() -> None:
    threads = [name_of(p) for p in SOURCES if calls(p, r"pthread_create|thrd_create|omp_\w+")]
    assert not [p for p in SOURCES if "#pragma omp" in p.read_text()]
    blas = [
        name_of(p) for p in SOURCES if re.search(r"cblas_\w+\s*\(", without_comments(p.read_text()))
    ]
    assert threads == ["threads.c"]
    assert set(blas) <= {"linear.c"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_core_never_prints_ends_or_asks_the_environment(path: Path) -> None:
    spoken = calls(
        path,
        r"v?f?printf|puts|fputs|putchar|perror|exit|_exit|abort|quick_exit|assert|system|signal|setenv",
    )
    assert not spoken
    if name_of(path) != "py/module.c":  # reads QWEN35_ISA once, at import
        assert not calls(path, "getenv|secure_getenv")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_core_opens_no_file(path: Path) -> None:
    assert not calls(path, "fopen|open|fread|read|mmap|popen|dlopen|socket|fork|execve?")


def writable_globals(path: Path) -> list[str]:
    """Definitions that outlive a call and can be written: at file scope, and `static` inside
    functions.
    """
    text = without_comments(path.read_text())
    text = re.sub(r"^\s*#(?:[^\n]*\\\n)*[^\n]*", "", text, flags=re.MULTILINE)
    found = re.findall(r"^[ \t]+(static (?!const |inline )[^;=(]*)", text, re.MULTILINE)
    while True:  # fold every brace block
        folded = re.sub(r"\{[^{}]*\}", "@", text)
        if folded == text:
            break
        text = folded
    text = re.sub(r"\)\s*@", ");", text)  # a function ends like its prototype
    for piece in text.split(";"):
        line = " ".join(piece.split())
        name = line.partition("=")[0]
        if " " not in line or re.match(
            r"(typedef|extern|enum|union)\b|struct \w+ @$|struct \w+$", line
        ):
            continue
        pointer = re.match(r"[^(]*\(\s*\*", name)  # to a function
        if "(" in name and not pointer:
            continue
        if pointer or not re.search(r"\bconst\b(?!.*\*\s*\w+\s*(\[|$))", name):
            found.append(line)
    return [" ".join(f.split()) for f in found]


def test_scan_for_writable_globals(tmp_path: Path) -> None:
    """The scan itself, on what it must find and what it must let pass."""
    bad = [
        "static int counter",
        "int shared = 3",
        "static char buf[4], *p",
        "const char *name",
        "static void (*call)(int)",
    ]
    good = [
        "static const int t[2] = {1, 2}",
        "const char *const fixed = 0",
        "typedef int fn(int)",
        "int f(void)",
    ]
    source = tmp_path / "x.c"
    source.write_text(
        ";\n".join(bad + good) + ";\nint g(int a) {\n    static int inner;\n    return a;\n}\n"
    )
    found = " / ".join(writable_globals(source))
    assert [
        b for b in ["counter", "shared", "buf", "*name", "call", "inner"] if b not in found
    ] == []
    assert [g for g in ["t[2]", "fixed", "fn", "f(", "g("] if g in found] == []


# What may be written after the module is loaded, and why.
WRITABLE = {
    "kernels/table.c": {"q35_kernel"},  # the kernel table, chosen once at import
    "linear.c": {"blas_lock"},  # OpenBLAS is one per process, and so is its lock
}
# Definitions that CPython's API wants writable, though nobody writes them.
CPYTHON = re.compile(r"static (struct )?Py\w+ |Py\w+ |static char \*names\[\]")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_writable_globals(path: Path) -> None:
    allowed = WRITABLE.get(name_of(path), set())
    found = [v for v in writable_globals(path) if not allowed & set(re.findall(r"\w+", v))]
    if name_of(path).startswith("py/"):
        found = [v for v in found if not CPYTHON.match(v)]
    assert not found


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix in {".c", ".inl"}], ids=name_of)
def test_files_open_with_what_they_do(path: Path) -> None:
    assert path.read_text().startswith("/*"), f"{name_of(path)} does not say what it does"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_readable(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 600, f"{name_of(path)} has {len(lines)} lines: split it by subject"
    assert "\t" not in path.read_text()


# ---- qwen35 --------------------------------------------------------------------------------------

MODULES = sorted((HOME / "qwen35").glob("*.py"))


def undocumented(tree: ast.Module) -> list[str]:
    """Public classes, functions and methods of a module that have no docstring."""
    missing = [] if ast.get_docstring(tree) else ["the module"]

    def look(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if node.name.startswith("_"):
                continue
            trivial = isinstance(node, ast.FunctionDef) and len(node.body) == 1 and bool(prefix)
            if not ast.get_docstring(node) and not trivial:
                missing.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{prefix}{node.name}.")

    look(tree.body, "")
    return missing


def inherited_doc(module: str, name: str) -> str | None:
    """What help() shows: a method that overrides a documented one need not repeat it."""
    found: object = importlib.import_module(f"qwen35.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    return inspect.getdoc(found)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_public_names_are_documented(path: Path) -> None:
    missing = undocumented(ast.parse(path.read_text()))
    assert not [n for n in missing if "." not in n or not inherited_doc(path.stem, n)]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_nothing_rests_on_assert(path: Path) -> None:
    """`python -O` drops assert: validation may not rest on it."""
    asserts = [n.lineno for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)]
    assert not asserts


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_python_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "jinja2",
    "PIL",
    "huggingface_hub",
    "tqdm",
    "IPython",
    "safetensors",
)


def test_import_is_light() -> None:
    out = run_python("import sys, qwen35; print(*sys.modules)")
    assert not set(HEAVY) & set(out.split())


def test_every_public_name_resolves_without_torch() -> None:
    out = run_python(
        "import sys, qwen35\nfor name in qwen35.__all__: getattr(qwen35, name)\nprint(*sys.modules)"
    )
    assert not {"torch", "transformers"} & set(out.split())


def test_public_names_have_docstrings_at_run_time() -> None:
    import qwen35

    missing = [
        name
        for name in qwen35.__all__
        if callable(getattr(qwen35, name)) and not (getattr(qwen35, name).__doc__ or "").strip()
    ]
    assert not missing


# ---- the native module and its stub --------------------------------------------------------------


def stub_names() -> tuple[set[str], dict[str, set[str]]]:
    """Functions and classes of _core.pyi that exist at run time, and the members of each class."""
    tree = ast.parse((HOME / "qwen35" / "_core.pyi").read_text())
    names, members = set(), {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef) and "TypedDict" not in {
            ast.unparse(b) for b in node.bases
        }:
            names.add(node.name)
            members[node.name] = {
                n.name
                for n in node.body
                if isinstance(n, ast.FunctionDef) and not n.name.startswith("__")
            }
    return names, members


def test_stub_and_module_have_the_same_names() -> None:
    from qwen35 import _core

    names, _ = stub_names()
    assert {n for n in dir(_core) if not n.startswith("_")} == names


def test_stub_and_module_classes_have_the_same_members() -> None:
    from qwen35 import _core

    for name, stub in stub_names()[1].items():
        real = {n for n in dir(getattr(_core, name)) if not n.startswith("_")}
        assert real == stub, name


def test_native_names_are_documented() -> None:
    from qwen35 import _core

    names, members = stub_names()
    missing = [n for n in names if not getattr(_core, n).__doc__]
    for owner, found in members.items():
        missing += [f"{owner}.{m}" for m in found if not getattr(getattr(_core, owner), m).__doc__]
    assert not missing
