"""What the environment asks for, checked once; the only file that reads os.environ.

Command-line options belong to demo/, facts about products to backends/device_specs.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backends import BACKENDS, default_backend
from backends.device_specs import SPECS
from models.numbers import NUMBERS, read_number

ALL_GATHERS = ("QKV", "WO", "FF1", "FF3", "FF2", "LAYERNORM")  # that USE_LINE_AG can name
TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off", ""})


def parse_bool(text: str, name: str) -> bool:
    """Read a yes/no word; anything else is an error that names the accepted words."""
    word = text.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError(f"{name} is {text!r}: use 1/true/yes/on or 0/false/no/off")


def one_of(value: str, name: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is a choice, else raise an error that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value[:60]!r}: choose one of {', '.join(choices)}")
    return value


@dataclass(frozen=True)
class Settings:
    """The environment as typed values; `None` means the variable was not set."""

    backend: str
    device: str | None = None  # MESH_DEVICE, else FAKE_DEVICE
    hf_model: str | None = None  # directory or hub name
    llama_dir: Path | None = None  # directory in Meta's format
    cache_path: Path | None = None
    max_prefill_chunk: int | None = None  # tokens
    pad_mlp_cores: int | None = None
    wh_arch_yaml: str | None = None
    line_reduce_scatter: bool = False
    line_all_gather: bool = False
    line_all_gather_names: frozenset[str] = frozenset()
    emulator_device: str = "cpu"
    emulator_threads: int | None = None  # TT_EMULATOR_THREADS, else OMP_NUM_THREADS
    ci: bool = False
    hub_offline: bool = False  # huggingface_hub obeys it; here it is only checked
    galaxy_type: str = "6U"

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, fake_device: str | None = None
    ) -> Settings:
        """Read and check the environment; raises ValueError with one clear line.

        `fake_device` is the command line's FAKE_DEVICE, which wins.
        """
        env = {k: v for k, v in (os.environ if environ is None else environ).items() if v != ""}
        if fake_device:
            env["FAKE_DEVICE"] = fake_device
        if "HF_MODEL" in env and "LLAMA_DIR" in env:
            raise ValueError(
                f"HF_MODEL ({env['HF_MODEL']}) and LLAMA_DIR ({env['LLAMA_DIR']}) are both set: "
                "unset one, they name two different checkpoints"
            )
        backend, device = _backend_and_device(env)
        thousands = _number(env, "MAX_PREFILL_CHUNK_SIZE", "max_prefill_chunk")

        def flag(name: str) -> bool:
            return parse_bool(env.get(name, "0"), name)

        return cls(
            backend=backend,
            device=device,
            hf_model=env.get("HF_MODEL"),
            llama_dir=_directory(env, "LLAMA_DIR"),
            cache_path=_cache_path(env),
            max_prefill_chunk=1024 * thousands if thousands else None,
            pad_mlp_cores=_number(env, "PAD_MLP_CORES", "pad_mlp_cores"),
            wh_arch_yaml=env.get("WH_ARCH_YAML"),
            line_reduce_scatter=flag("LINE_RS"),
            line_all_gather=flag("LINE_AG"),
            line_all_gather_names=_names(env, "USE_LINE_AG", ALL_GATHERS),
            emulator_device=one_of(
                env.get("TT_EMULATOR_DEVICE", "cpu"), "TT_EMULATOR_DEVICE", ("cpu", "cuda", "meta")
            ),
            emulator_threads=_threads(env),
            ci=flag("CI"),
            hub_offline=flag("HF_HUB_OFFLINE"),
            galaxy_type=one_of(env.get("GALAXY_TYPE", "6U"), "GALAXY_TYPE", ("4U", "6U")),
        )

    @property
    def checkpoint(self) -> str | None:
        """What to open: a directory or a hub name; None means the default model."""
        return str(self.llama_dir) if self.llama_dir else self.hf_model


def _threads(env: Mapping[str, str]) -> int | None:
    """Threads of the emulator; None: as many as there are cores for them."""
    if "TT_EMULATOR_THREADS" not in env:
        common = env.get("OMP_NUM_THREADS", "").split(",")[0]  # what is no number, OpenMP ignores
        if not common.isascii() or not common.isdecimal() or len(common) > 9:
            return None
        return min(int(common), int(NUMBERS["threads"].high)) or None
    return _number(env, "TT_EMULATOR_THREADS", "threads")


def _backend_and_device(env: Mapping[str, str]) -> tuple[str, str | None]:
    devices = tuple(SPECS)
    fake, mesh = env.get("FAKE_DEVICE"), env.get("MESH_DEVICE")
    for name, value in (("FAKE_DEVICE", fake), ("MESH_DEVICE", mesh)):
        if value is not None:
            one_of(value, name, devices)
    backend = env.get("TT_BACKEND")
    if backend is not None:
        one_of(backend, "TT_BACKEND", BACKENDS)
    if fake is not None and backend not in (None, "emulator"):
        raise ValueError(
            f"FAKE_DEVICE={fake} means the emulator, but TT_BACKEND is {backend!r}: "
            f"use MESH_DEVICE={fake} with that backend, or unset TT_BACKEND"
        )
    backend = backend or ("emulator" if fake else default_backend())
    return backend, mesh or fake


def _number(env: Mapping[str, str], name: str, number: str) -> int | None:
    return read_number(number, env[name], name) if name in env else None


def _directory(env: Mapping[str, str], name: str) -> Path | None:
    if name not in env:
        return None
    path = _expanded(env, name)
    if not _is_directory(path):
        raise ValueError(f"{name} is {env[name][:200]!r}: no such directory")
    return path


def _cache_path(env: Mapping[str, str]) -> Path | None:
    name = "TT_CACHE_PATH"
    if name not in env:
        return None
    path = _expanded(env, name)
    try:
        part = next(part for part in (path, *path.parents) if part.exists())
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{name} is {env[name][:200]!r}: {reason}, use a directory") from None
    if not part.is_dir():
        raise ValueError(f"{name} is {env[name]!r}, but {part} is a file: use a directory")
    return path


def _expanded(env: Mapping[str, str], name: str) -> Path:
    try:
        return Path(env[name]).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} is {env[name]!r}: {error}".replace("\n", " ")) from None


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _names(env: Mapping[str, str], name: str, known: tuple[str, ...]) -> frozenset[str]:
    """Read a set written as {"QKV", "WO"} or QKV,WO."""
    parts = (part.strip(" {}[]'\"") for part in env.get(name, "").split(","))
    return frozenset(one_of(part, name, known) for part in parts if part)
