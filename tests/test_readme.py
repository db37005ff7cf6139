"""README stays true: its commands are run or checked, its tables compared with the code.

A code block says what happens to it here: `bash run` is executed as it stands; of `bash collect`
the ids and targets are checked without running; `bash by-hand: reason` is only read. Of all
documents, programs and their options must exist.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from backends.device_specs import SPECS
from demo.options import OPTIONS
from models.precision import Fidelity, Precision, TensorGroup
from models.registry import canonical_name, model_names
from runtime import settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "PERF.md", "lt/README.md", "models/README.md",
             "perf/published/README.md")  # fmt: skip
README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = ("run", "collect", "by-hand")
SECONDS = 300


def blocks() -> list[tuple[str, str]]:
    """(kind, body) of README's code blocks."""
    found = []
    for match in BLOCK.finditer(README):
        language, _, rest = match["info"].partition(" ")
        if language == "bash":
            found.append((rest.partition(":")[0], match["body"]))
    return found


def commands(kind: str) -> list[str]:
    """Lines of the blocks of a kind; the environment is activated already where tests run."""
    lines = [line for block, body in blocks() if block == kind for line in body.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "source "))]


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run one line as a reader would with the environment activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    outer = ("TT_BACKEND", "MESH_DEVICE", "FAKE_DEVICE", "HF_MODEL", "LLAMA_DIR", "MAKEFLAGS")
    env = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={**env, "PATH": path}, timeout=SECONDS,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def python_commands() -> dict[str, set[str]]:
    """Program -> options it is given in any document, in lines of code or within a sentence."""
    found: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        for line in re.findall(r"(?:^ *|`)(python [^`\n]+)", (ROOT / document).read_text(), re.M):
            words = shlex.split(line.split("  ")[0], comments=True)  # what follows is a remark
            # a module may have commands of its own: python -m lt table
            program = words[1:4] if words[1] == "-m" else words[1:2]
            name = " ".join(word for word in program if word == "-m" or word[0] != "-")
            found.setdefault(name, set()).update(word for word in words if word.startswith("--"))
    return found


def test_every_block_says_how_it_is_checked() -> None:
    assert {kind for kind, _ in blocks()} == set(KINDS)


@pytest.mark.parametrize("command", commands("run"))
def test_fast_commands_run(command: str) -> None:
    result = shell(command)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


# One process collects for all commands: starting pytest for each would take longer than the rest.
COLLECT_ALL = """
import json, sys, pytest

class Selected:
    def pytest_collection_finish(self, session):
        self.names = [item.nodeid for item in session.items]

for words in json.loads(sys.argv[1]):
    selected = Selected()
    code = pytest.main([*words, "--collect-only", "-qq"], plugins=[selected])
    print("RESULT", int(code), len(getattr(selected, "names", ())))
"""


def test_demo_commands_select_exactly_one_case() -> None:
    """Options are parsed and ids found; nothing is run."""
    lines = [c for c in commands("collect") if "pytest " in c]
    words = [shlex.split(line.partition("pytest ")[2], comments=True) for line in lines]
    result = shell(shlex.join(["python", "-c", COLLECT_ALL, json.dumps(words)]))
    found = re.findall(r"^RESULT (\d+) (\d+)$", result.stdout, re.MULTILINE)
    assert len(found) == len(lines) > 0, result.stdout[-2000:] + result.stderr[-2000:]
    bad = [line for line, (code, count) in zip(lines, found, strict=True) if code + count != "01"]
    assert not bad, result.stdout[-2000:]


@pytest.mark.parametrize(("program", "options"), python_commands().items())
def test_programs_and_their_options_are_known(program: str, options: set[str]) -> None:
    if "tests.served" in program:
        pytest.importorskip("openai", reason="vLLM is not installed: make setup-vllm")
    result = shell(f"python {program} --help")
    assert result.returncode == 0, result.stderr
    known = set(re.findall(r"--[\w-]+", result.stdout)) | {"--help"}
    assert options <= known, f"{program} has no {', '.join(options - known)}"


@pytest.mark.parametrize("command", [c for c in commands("collect") if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    assert shell(f"make --dry-run {command.removeprefix('make ')}").returncode == 0


def test_every_command_is_of_a_kind_these_tests_know() -> None:
    known = ("pytest ", "python -m", "make ")
    assert not [c for c in commands("collect") if not any(word in c for word in known)]


def column(title: str) -> set[str]:
    """Every `name` in the first column of the table whose heading begins with `title`."""
    table = README[README.index(f"| {title}") :].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_options_table_lists_the_demos_options() -> None:
    flags = {f"--{option.field}" for option in OPTIONS}
    flags |= {alias for option in OPTIONS for alias in option.aliases}
    assert column("Option") == flags | {"--enable_trace", "--disable_trace", "--FAKE_DEVICE"}


def test_the_environment_table_lists_what_settings_reads() -> None:
    code = Path(settings.__file__).read_text("utf-8")
    read = set(re.findall(r'"([A-Z][A-Z0-9_]{3,}|CI)"', code))
    assert column("Variable") == read - set(settings.ALL_GATHERS)  # names that one of them takes


def test_the_device_table_lists_the_devices() -> None:
    assert column("`MESH_DEVICE`") == set(SPECS)


def test_the_precision_section_names_the_formats_and_fidelities() -> None:
    section = README[README.index("### Precision") : README.index("## Dry run")]
    for choice in (*Precision, *Fidelity, *TensorGroup):
        assert choice.value in section


def test_the_model_table_names_every_known_model() -> None:
    table = README[README.index("| Model | Systems") :].split("\n\n")[0]
    cells = ",".join(line.split("|")[1] for line in table.splitlines()[2:])
    named = {canonical_name(re.sub(r"\(.*\)", "", name).strip()) for name in cells.split(",")}
    assert named == set(model_names())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in BLOCK.sub("", text).splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, heading = target.partition("#")
        if "://" not in target:
            assert ((ROOT / document).parent / path).exists(), target
            assert not heading or path or heading in headings, target
