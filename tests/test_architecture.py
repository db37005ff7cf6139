"""Holds the code to its layout: who imports whom, who reads what, how long things may get.

Each test reads the tracked files and names every place that breaks its rule. An exception stands
in a table here with its reason; an exception that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from backends import threads

ROOT = Path(__file__).resolve().parent.parent

# Imports point down: a package may import itself and what stands after it.
LAYERS = ("demo", "lt", "references", "serving", "perf", "runtime", "models", "backends")
ON_TOP = {"demo", "lt", "references"}  # nobody below imports these, nor each other
# Within a package: a room may import itself and what stands on floors below, not its neighbours.
# Modules that no floor names stand above all of them.
FLOORS = {
    "backends.emulator": (
        ("ops",), ("trace",), ("replay", "rules"), ("kv", "launch"), ("chip", "numerics"),
        ("loops",), ("api",),
    ),
    "perf": (
        ("calibrate",), ("predict",), ("cost", "op_lists", "metrics", "record"), ("profiler",),
    ),
}  # fmt: skip
NOBODY_IMPORTS = {"serving.tenstorrent"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
LONG_FILES: dict[str, str] = {
    "tests/ops/model_op_cases.py": "a list of calls with their expected refusals: data that runs",
}
LONG_FUNCTIONS: dict[str, str] = {}
CASE_TABLES = "_cases.py"  # a list of calls to try, one after the other: data that runs

# What a prompt passes on its way from the demo to its logits: to be read in one sitting.
MAIN_PATH = (
    "demo/simple_text_demo.py", "demo/run.py", "demo/flow.py", "demo/session.py",
    "runtime/generator.py", "runtime/engine.py", "models/transformer.py",
    *(f"models/layers/{name}.py" for name in (
        "embedding", "decoder", "norm", "attention", "rope", "mlp", "lm_head",
    )),
)  # fmt: skip
MAX_MAIN_PATH_LINES = 2000

ENVIRONMENT_READERS = {
    "runtime/settings.py": "the one reader",
    "backends/dry_run/environment.py": "writes what the wheel reads when it is imported",
    "backends/threads.py": "writes what OpenMP reads when torch is imported",
    "serving/launch.py": "writes what vLLM reads when it starts its engine",
}
COMMANDS_SHOWN = {
    "perf/report.py": "PERF.md says which command gives a figure",
    "runtime/teacher_forcing.py": "the error of a missing reference says how to record it",
}
WHEEL_IMPORTERS = ("backends/",)
DOCUMENTED_BY_TTNN = ("backends/emulator/api/", "backends/emulator/ops/")

PRODUCT = re.compile(r"\b(N150|N300|T3K|TG|P100|P150|Galaxy|LoudBox|QuietBox)\w*\b")
# Where a text was written is nobody's business: no folders of one machine, no private papers.
PRIVATE = re.compile(
    r"(?<![\w.])/(?:work|root|home)/\w|/tmp/\w|\bDESIGN\.md|\bCONTRACTS\b|\b[Ii]ssues? #?\d"
    r"|\bfact book\b|\bseed('s)? (?:README|software|rows|tables?)\b"
    r"|\bshared/(?:seeds|reference|prototypes|data)"
)
TEXTS = {".py", ".md", ".toml", ".txt", ".ini", ".sh", ".json", ""}


@cache
def tracked_files() -> tuple[str, ...]:
    """Paths of the files git tracks that are still there."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(name for name in names.split("\0") if name and (ROOT / name).is_file())


@cache
def python_files() -> dict[str, ast.Module]:
    """Syntax trees of the tracked Python files by path."""
    return {
        name: ast.parse((ROOT / name).read_text(encoding="utf-8"), name)
        for name in tracked_files()
        if name.endswith(".py")
    }


def imported_modules(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, wherever it stands; `from a import b` gives a and a.b."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield node.lineno, module
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def all_imports() -> Iterator[tuple[str, int, str]]:
    """(path, line, module) of every import in the repository."""
    for path, tree in python_files().items():
        for line, module in imported_modules(path, tree):
            yield path, line, module


def layer(name: str) -> int | None:
    """How far down a module or path stands; None for tests, scripts and foreign packages."""
    first = re.split(r"[./]", name)[0]
    return LAYERS.index(first) if first in LAYERS else None


def floor(package: str, module: str) -> tuple[int, str] | None:
    """Floor (0 is the top) and room of a module; None: it is not of this package."""
    if not module.startswith(package + "."):
        return None
    room = module.removeprefix(package + ".").split(".")[0]
    for number, rooms in enumerate(FLOORS[package], 1):
        if room in rooms:
            return number, room
    return 0, room


def module_of(path: str) -> str:
    """backends/emulator/ops/__init__.py is backends.emulator.ops."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules of which each reaches every other one."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        rest = [start]
        while rest:
            rest += graph.get(rest.pop(), set()) - seen
            seen |= set(rest)
        return seen

    reach = {module: reached(module) for module in graph}
    groups = {
        tuple(sorted(other for other in found if module in reach.get(other, set())))
        for module, found in reach.items()
        if module in found
    }
    return [list(group) for group in sorted(groups)]


def docstrings(tree: ast.Module) -> set[int]:
    """The nodes, by id, that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def listing(found: list[str]) -> str:
    """One place a line."""
    return "\n" + "\n".join(sorted(set(found)))


def test_imports_point_down() -> None:
    found = []
    for path, line, module in all_imports():
        here, there = layer(path), layer(module)
        if here is not None and there is not None and (there < here):
            found.append(f"{path}:{line} imports {module}")
    assert not found, listing(found)


def test_nobody_imports_the_programs_on_top() -> None:
    found = []
    for path, line, module in all_imports():
        package, first = path.split("/")[0], module.split(".")[0]
        foreign = first in ON_TOP and package not in (first, "tests")
        if foreign or (module in NOBODY_IMPORTS and package != "tests"):
            found.append(f"{path}:{line} imports {module}")
    assert not found, listing(found)


def test_rooms_only_look_down() -> None:
    found = []
    for path, line, module in all_imports():
        for package in FLOORS:
            here, there = floor(package, module_of(path)), floor(package, module)
            if here is None or there is None or here[1] == there[1]:
                continue
            if there[0] <= here[0] and here[0]:
                found.append(f"{path}:{line} imports {module}")
    assert not found, listing(found)
    for package, floors in FLOORS.items():
        folder = ROOT / package.replace(".", "/")
        gone = [room for rooms in floors for room in rooms if not [*folder.glob(f"{room}*")]]
        assert not gone, f"{package} has no {gone}: remove them from FLOORS"


def test_imports_form_no_circles() -> None:
    ours = {module_of(path): path for path in python_files() if layer(path) is not None}
    graph: dict[str, set[str]] = {module: set() for module in ours}
    for path, _, imported in all_imports():
        if layer(path) is not None and imported in ours:
            graph[module_of(path)].add(imported)
    for module in graph:  # `from package import name` reads the package, which knows its parts
        graph[module] -= {module, *(m for m in graph[module] if module.startswith(m + "."))}
    assert not circles(graph), listing([" <-> ".join(group) for group in circles(graph)])
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


def test_no_string_names_a_higher_package() -> None:
    names = re.compile(rf"(?<![\w./-])({'|'.join(LAYERS)})[./]\w+")
    found: dict[str, list[str]] = {}
    for path, tree in python_files().items():
        here, texts = layer(path), docstrings(tree)
        for node in ast.walk(tree):
            if here is None or not isinstance(node, ast.Constant) or id(node) in texts:
                continue
            for match in names.finditer(node.value if isinstance(node.value, str) else ""):
                if max(LAYERS.index(match.group(1)), len(ON_TOP) - 1) < here:
                    found.setdefault(path, []).append(f"{path}:{node.lineno} {match.group()}")
    over = [text for path, texts in found.items() if path not in COMMANDS_SHOWN for text in texts]
    assert not over, listing(over)
    assert set(COMMANDS_SHOWN) <= set(found), "an exception is no longer needed"


def test_nothing_of_ours_imports_tests() -> None:
    found = [
        f"{path}:{line} imports {module}"
        for path, line, module in all_imports()
        if module.split(".")[0] in ("tests", "conftest") and not path.startswith("tests/")
    ]
    assert not found, listing(found)


def test_only_backends_imports_the_wheel() -> None:
    found = [
        f"{path}:{line} imports {module}"
        for path, line, module in all_imports()
        if module.split(".")[0] == "ttnn" and not path.startswith((*WHEEL_IMPORTERS, "tests/"))
    ]
    assert not found, listing(found)


def reads_environment(node: ast.AST) -> bool:
    """os.environ, os.getenv, or either imported by name."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id == "os" and node.attr in ("environ", "getenv", "environb", "putenv")
    return isinstance(node, ast.ImportFrom) and (
        node.module == "os" and any(a.name in ("environ", "getenv") for a in node.names)
    )


def test_only_settings_reads_the_environment() -> None:
    readers = {
        path: node.lineno
        for path, tree in python_files().items()
        if layer(path) is not None
        for node in ast.walk(tree)
        if reads_environment(node)
    }
    found = [f"{path}:{line}" for path, line in readers.items() if path not in ENVIRONMENT_READERS]
    assert not found, listing(found)
    assert set(ENVIRONMENT_READERS) <= set(readers), "an exception is no longer needed"


def test_every_package_settles_how_threads_wait_before_torch_is_imported() -> None:
    first = {}
    for package in LAYERS:
        path = f"{package}/__init__.py"
        ours = [name for _, name in imported_modules(path, python_files()[path])]
        first[package] = next(name for name in ours if name.split(".")[0] in ("torch", *LAYERS))
        assert not any(name.startswith("torch") for name in ours)
    assert set(first.values()) == {"backends"}, first
    code = "import demo.cases, os, sys; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    own = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    env = {name: value for name, value in os.environ.items() if name not in own}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(
        command, env=env | {"OMP_DISPLAY_ENV": "verbose"}, cwd=ROOT, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.split() == ["True", str(threads.LOOKS)]
    assert f"GOMP_SPINCOUNT = '{threads.LOOKS}'" in shown.stderr, "torch's OpenMP has not read it"


def test_layers_know_no_products() -> None:
    found = [
        f"{path}:{number} {match.group()}"
        for path in python_files()
        if path.startswith("models/layers/")
        for number, line in enumerate((ROOT / path).read_text("utf-8").splitlines(), 1)
        if (match := PRODUCT.search(line))
    ]
    assert not found, listing(found)


def test_files_are_short() -> None:
    found = {}
    for path in python_files():
        lines = len((ROOT / path).read_text("utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            found[path] = f"{path} has {lines} lines"
    over = [text for path, text in found.items() if path not in LONG_FILES]
    assert not over, listing(over)
    assert set(LONG_FILES) <= set(found), "an exception is no longer needed"


def test_the_main_path_is_read_in_one_sitting() -> None:
    lines = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path in MAIN_PATH}
    assert sum(lines.values()) <= MAX_MAIN_PATH_LINES, lines


def test_functions_are_short() -> None:
    found = {}
    for path, tree in python_files().items():
        for node in functions(tree):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES and not path.endswith(CASE_TABLES):
                found[f"{path}:{node.name}"] = f"{path}:{node.lineno} {node.name}: {lines} lines"
    over = [text for name, text in found.items() if name not in LONG_FUNCTIONS]
    assert not over, listing(over)
    assert set(LONG_FUNCTIONS) <= set(found), "an exception is no longer needed"


def test_every_file_says_what_it_is() -> None:
    found = python_files().items()
    empty = [path for path, tree in found if tree.body and not ast.get_docstring(tree)]
    assert not empty, listing(empty)


def test_public_functions_and_classes_say_what_they_give() -> None:
    found = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in python_files().items()
        if layer(path) is not None and not path.startswith(DOCUMENTED_BY_TTNN)
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith(("_", "test_"))
        and not any(ast.unparse(by).startswith("op(") for by in node.decorator_list)
        and not ast.get_docstring(node)
    ]
    assert not found, listing(found)


def test_every_function_has_a_return_type() -> None:
    found = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in python_files().items()
        for node in functions(tree)
        if node.returns is None and not path.startswith("backends/emulator/ops/")
    ]
    assert not found, listing(found)


def test_texts_are_free_of_places_only_the_writer_knows() -> None:
    found = []
    for path in tracked_files():
        if Path(path).suffix not in TEXTS or path == "tests/test_architecture.py":
            continue
        for number, line in enumerate((ROOT / path).read_text("utf-8").splitlines(), 1):
            if match := PRIVATE.search(line):
                found.append(f"{path}:{number} {match.group()}")
    assert not found, listing(found)


def test_sample_prompts_are_json_only() -> None:
    prompts = [path for path in tracked_files() if path.startswith("sample_prompts/")]
    assert prompts
    assert not [path for path in prompts if not path.endswith(".json")]


def test_relative_and_hidden_imports_are_seen() -> None:
    code = "def f():\n    from ..runtime import engine\n    import demo.run"
    seen = {module for _, module in imported_modules("models/layers/x.py", ast.parse(code))}
    assert seen == {"models.runtime", "models.runtime.engine", "demo.run"}
