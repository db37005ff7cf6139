"""What of TT-NN our code uses, and what the installed wheel says of it.

As a process (`python -m tests.dry_run.surface FILE NAMES`) it writes the wheel's side.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
USERS = ("models", "runtime", "backends/mesh.py")
_SIGNATURE = re.compile(r"\w+\((?P<parameters>.*)\)(?: -> .*)?$")


@dataclass(frozen=True)
class Use:
    """One place where our code names or calls something of TT-NN."""

    name: str  # below ttnn
    where: str
    positional: int | None = None  # arguments of a call; None where it is only named
    keywords: tuple[str, ...] = ()


def uses() -> Iterator[Use]:
    """Every `ttnn.x.y` below USERS."""
    for user in USERS:
        place = ROOT / user
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            tree = ast.parse(path.read_text())
            calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
            inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
            for node in ast.walk(tree):
                name = dotted(node)
                if name is None or id(node) in inner:
                    continue
                where = f"{path.relative_to(ROOT)}:{node.lineno}"  # type: ignore[attr-defined]
                call = calls.get(id(node))
                if call is None:
                    yield Use(name, where)
                    continue
                spread = any(isinstance(argument, ast.Starred) for argument in call.args)
                yield Use(
                    name,
                    where,
                    0 if spread else len(call.args),
                    tuple(keyword.arg for keyword in call.keywords if keyword.arg),
                )


def dotted(node: ast.AST) -> str | None:
    """a.b of `ttnn.a.b`; None for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not parts or not isinstance(node, ast.Name) or node.id != "ttnn":
        return None
    return ".".join(reversed(parts))


def resolve(module: Any, name: str) -> Any:
    """The object, or None where there is none."""
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


Parameters = tuple[list[str], list[str]]  # by position, by keyword only


def parameters_of(function: Any) -> list[Parameters] | None:
    """One entry per overload; None where it is no call or cannot be told."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    positional, keyword = [], []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL or parameter.kind is parameter.VAR_KEYWORD:
            return None
        is_keyword = parameter.kind is parameter.KEYWORD_ONLY
        (keyword if is_keyword else positional).append(parameter.name)
    return [(positional, keyword)]


def native_parameters(value: Any) -> list[Parameters] | None:
    """Parameters of a nanobind function, type or op, from the signatures it prints."""
    value = getattr(value, "function", value)  # what an op calls
    texts = getattr(value, "__nb_signature__", None)
    if texts is None and isinstance(value, type):
        texts = getattr(value.__init__, "__nb_signature__", None)
    if texts is not None:
        lines = [entry[0].replace("\n", " ") for entry in texts]
    else:
        found = parameters_of(value)
        if found is not None:
            return found
        try:
            value(__no_such_parameter__=0)
        except TypeError as error:  # lists the signatures
            lines = re.findall(r"^\s+\d+\. (.*)$", str(error), re.M)
    return [_split(line) for line in lines] or None


def _split(line: str) -> Parameters:
    """Parameter names of `def f(a: x[y, z], *, b: int = 0) -> r`."""
    found = _SIGNATURE.search(line)
    assert found, line
    depth, part, parts = 0, "", []
    for letter in found["parameters"] + ",":
        depth += (letter in "[({") - (letter in "])}")
        if letter == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    names = [entry.split(":")[0].split("=")[0].strip() for entry in parts if entry]
    names = [name for name in names if name != "self"]
    star = next((i for i, name in enumerate(names) if name.lstrip("\\") == "*"), len(names))
    return names[:star], names[star + 1 :]


def main() -> None:
    import backends

    backends.select("dry-run", "N150")
    answers = {}
    for name in sys.argv[2].split(","):
        value = resolve(backends.ttnn, name)
        value = getattr(value, "wheel", value)
        answers[name] = None if value is None else {"overloads": native_parameters(value)}
    Path(sys.argv[1]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
