"""What lt can run: a table of commands, and how models and devices turn into jobs.

Only names and arguments stand here; jobs.py runs them, results.py reads what they recorded.
"""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from backends.device_specs import SPECS
from models.fields import is_there
from models.precision import compared_settings
from models.registry import DEFAULT_MODEL, load_config, model_names

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATIONS = ROOT / "lt" / "configurations"
REFERENCES = ROOT / "references"  # of runtime/teacher_forcing.py, which loads torch
DEMO = ("-m", "pytest", "-q", "demo/simple_text_demo.py")
FORCED_TOKENS = 512


@dataclass(frozen=True)
class Plan:
    """One process to run, before it has a number and a log."""

    command: str  # as lt calls it
    model: str
    device: str
    arguments: tuple[str, ...]  # of python
    variables: tuple[tuple[str, str], ...] = ()
    optimizations: str = ""

    @property
    def argv(self) -> list[str]:
        """The whole command line; the job's model and device, not those of the environment."""
        settings = [f"{name}={value}" for name, value in self.variables]
        others = [
            word for name in ("FAKE_DEVICE", "HF_MODEL", "LLAMA_DIR") for word in ("-u", name)
        ]
        return ["env", *others, *settings, sys.executable, *self.arguments]

    @property
    def is_prediction(self) -> bool:
        """Whether figures come as JSON on its output, not as a record."""
        return "perf.predict" in self.arguments

    @property
    def recorded_command(self) -> str:
        """How the process calls itself in its record."""
        return shlex.join(self.arguments[1:] if self.arguments[0] == "-m" else self.arguments)


# of this repository's own calls, so that a prediction and a demo of one table agree
PREDICT = ("-m", "perf.predict", "--software", "own")


@dataclass(frozen=True)
class Command:
    """A line of the table of commands; {optimizations} stands for a setting."""

    arguments: tuple[str, ...]
    help: str
    per_model: bool = True  # False: run once, whatever models and devices are chosen
    optimizations: str = "performance"
    prediction: bool = False
    accuracy: bool = False
    members: tuple[str, ...] = field(default=())  # a group of other commands


def _demo(case: str, help_: str, *more: str) -> Command:
    preset = case.split()[0]
    return Command((*DEMO, "-k", case, *more), help_, optimizations=preset)


def _accuracy(preset: str) -> Command:
    case = ("-k", f"{preset} and batch-1", "--token_accuracy", "True")
    arguments = (*DEMO, *case, "--max_generated_tokens", str(FORCED_TOKENS))
    return Command(arguments, f"token accuracy, {preset}", optimizations=preset, accuracy=True)


def _predict(preset: str) -> Command:
    arguments = (*PREDICT, "--optimizations", preset, "--json")
    return Command(arguments, f"modelled speed, {preset}", optimizations=preset, prediction=True)


def _tests(path: str, help_: str) -> Command:
    return Command(("-m", "pytest", "-q", path), help_, per_model=False)


COMMANDS: dict[str, Command] = {
    "demo": _demo("performance and batch-1", "one user, performance"),
    "demo-acc": _demo("accuracy and batch-1", "one user, accuracy"),
    "demo-32": _demo("performance and batch-32", "32 users"),
    "demo-long": _demo("performance and long-context", "64K tokens"),
    "demo-ci-1": _demo("performance and ci-1", "one user, 4096 tokens"),
    "demo-ci-32": _demo("performance and ci-32", "32 users, 1024 tokens"),
    "demo-dp-4": _demo("performance and DP-4-b1", "4 data-parallel groups"),
    "demo-dp-8": _demo("performance and DP-8-b1", "8 data-parallel groups"),
    "demo-32-dp-4": _demo("performance and DP-4-b32", "4 groups of 32 users"),
    "demo-ci-dp-4": _demo("performance and ci-b1-DP-4", "4 groups, 2048 tokens"),
    "demo-ci-dp-8": _demo("performance and ci-b1-DP-8", "8 groups, 2048 tokens"),
    "accuracy": _accuracy("performance"),
    "accuracy-acc": _accuracy("accuracy"),
    "predict": _predict("performance"),
    "predict-acc": _predict("accuracy"),
    "dry-run": Command(("-m", "runtime.dry_run"), "checked by the real TT-NN on mock chips"),
    "test-ops": _tests("tests/ops", "emulated ops against the wheel's"),
    "test-model": _tests("tests/model", "the stack against Hugging Face"),
    "test-unit": _tests("tests/unit", "the parts"),
    "tests": Command((), "all of the tests", members=("test-unit", "test-ops", "test-model")),
    "table": Command(
        (), "accuracy and speed of both presets",
        members=("accuracy", "predict", "accuracy-acc", "predict-acc"),
    ),
    "pareto": Command((), "accuracy and speed of all compared settings"),
    "pareto_from_json": Command((), "the same of lt/configurations/*.json"),
}  # fmt: skip


def settings_of(command: str) -> list[str]:
    """Settings that pareto or pareto_from_json compares."""
    if command == "pareto_from_json":
        found = [str(path.relative_to(ROOT)) for path in sorted(CONFIGURATIONS.glob("*.json"))]
        if not found:
            raise ValueError(f"there is no *.json in {CONFIGURATIONS.relative_to(ROOT)}")
        return found
    return ["performance", "accuracy", *compared_settings()]


def choose(text: str, known: Sequence[str], what: str) -> list[str]:
    """Names picked by a list like `a, b` or `all`, without regard to case; paths as absolute."""
    by_lower = {name.lower(): name for name in known}
    words = text.replace(",", " ").split()
    if what == "model" and text.strip() and is_there(Path(text)):
        words = [text]  # a path, which may have spaces
    if not words:
        raise ValueError(f"no {what} is named: choose all or some of {', '.join(known)}")
    if [word.lower() for word in words] == ["all"]:
        return list(known)
    chosen = []
    for word in words:
        if word.lower() in by_lower:
            chosen.append(by_lower[word.lower()])
        elif what == "model" and is_there(Path(word)):
            chosen.append(os.path.abspath(word))  # jobs run elsewhere, and again from anywhere
        elif what == "model" and "/" in word:
            chosen.append(word)  # a name on the hub
        else:
            raise ValueError(f"unknown {what} {word!r}: choose all or some of {', '.join(known)}")
    return list(dict.fromkeys(chosen))


def all_models() -> list[str]:
    """default, and every model whose facts are known."""
    return ["default", *(name for name in model_names() if name != DEFAULT_MODEL)]


def plan(command: str, models: str = "default", devices: str = "N150") -> list[Plan]:
    """Processes of a command line; raises ValueError that names the alternatives."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"command {command[:60]!r} cannot be taken apart: {error}") from None
    if not words:
        raise ValueError(f"no command: choose one of {', '.join(COMMANDS)}")
    chosen = choose(models, all_models(), "model")
    where = choose(devices, list(SPECS), "device")
    if words[0] == "pytest":
        pairs = itertools.product(chosen, where)
        return [_plan("pytest", ("-m", *words), model, device) for model, device in pairs]
    return [one for word in words for one in _plans_of(word, chosen, where)]


def _plans_of(name: str, models: list[str], devices: list[str]) -> Iterator[Plan]:
    if name not in COMMANDS:
        raise ValueError(
            f"unknown command {name!r}: choose one of {', '.join(COMMANDS)}, or `pytest ...`"
        )
    command = COMMANDS[name]
    if command.members:
        for model, member in itertools.product(models, command.members):
            if not COMMANDS[member].accuracy or has_reference(model):
                yield from _plans_of(member, [model], devices)
    elif name.startswith("pareto"):
        for model, device in itertools.product(models, devices):
            yield from pareto_plans(settings_of(name), model, device)
    elif not command.per_model:
        yield Plan(name, "-", "-", command.arguments)
    else:
        for model, device in itertools.product(models, devices):
            yield _plan(name, command.arguments, model, device, command.optimizations)


def _plan(
    name: str, arguments: tuple[str, ...], model: str, device: str, optimizations: str = ""
) -> Plan:
    if arguments[1] in ("perf.predict", "runtime.dry_run"):
        arguments = (*arguments, "--model", model, "--device", device)
        return Plan(name, model, device, arguments, (), optimizations)
    variables = [("MESH_DEVICE", device)]
    if model != "default":
        variables.append(("HF_MODEL", model))
    return Plan(name, model, device, arguments, tuple(variables), optimizations)


def pareto_plans(settings: Sequence[str], model: str, device: str) -> Iterator[Plan]:
    """Accuracy and modelled speed of each setting."""
    for number, setting in enumerate(settings):
        chosen = ("--optimizations", setting)
        accuracy = (*COMMANDS["accuracy"].arguments, *chosen)
        if has_reference(model):
            yield _plan(f"accuracy-{number}", accuracy, model, device, setting)
        predict = (*PREDICT, *chosen, "--json")
        yield _plan(f"predict-{number}", predict, model, device, setting)


@lru_cache(maxsize=256)
def has_reference(model: str) -> bool:
    """Whether token accuracy can be asked for."""
    return (REFERENCES / f"{config_name(model)}.json").is_file()


@lru_cache(maxsize=256)
def config_name(model: str) -> str:
    """The name a model's records carry."""
    try:
        return load_config(model).name
    except ValueError:
        return model.rstrip("/").split("/")[-1]
