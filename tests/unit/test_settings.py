"""The environment becomes typed values, every wrong value one line that says what works."""

import os
from pathlib import Path

import pytest

from backends import threads
from backends.device_specs import SPECS
from runtime.settings import Settings


def test_an_empty_environment_means_the_default_model_and_no_device_choice() -> None:
    settings = Settings.from_env({})
    assert settings.checkpoint is None
    assert settings.device is None
    assert settings.max_prefill_chunk is None
    assert not settings.ci


def test_values_are_typed() -> None:
    settings = Settings.from_env(
        {
            "TT_BACKEND": "dry-run",
            "MESH_DEVICE": "T3K",
            "HF_MODEL": "meta-llama/Llama-3.1-8B",
            "MAX_PREFILL_CHUNK_SIZE": "4",
            "PAD_MLP_CORES": "16",
            "LINE_RS": "1",
            "LINE_AG": "0",
            "USE_LINE_AG": '{"QKV", "WO"}',
            "CI": "true",
        }
    )
    assert (settings.backend, settings.device) == ("dry-run", "T3K")
    assert settings.checkpoint == "meta-llama/Llama-3.1-8B"
    assert settings.max_prefill_chunk == 4096
    assert settings.pad_mlp_cores == 16
    assert (settings.line_reduce_scatter, settings.line_all_gather) == (True, False)
    assert settings.line_all_gather_names == {"QKV", "WO"}
    assert settings.ci


@pytest.mark.parametrize(("word", "value"), [("0", False), ("false", False), ("On", True)])
def test_zero_and_false_are_false(word: str, value: bool) -> None:
    assert Settings.from_env({"CI": word}).ci is value


def test_fake_device_is_the_emulator_as_that_device() -> None:
    settings = Settings.from_env({"FAKE_DEVICE": "TG"})
    assert (settings.backend, settings.device) == ("emulator", "TG")


def test_mesh_device_picks_a_smaller_mesh_of_a_fake_system() -> None:
    assert Settings.from_env({"FAKE_DEVICE": "TG", "MESH_DEVICE": "N150"}).device == "N150"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"HF_MODEL": "a", "LLAMA_DIR": "/b"}, ["HF_MODEL", "LLAMA_DIR", "unset one"]),
        ({"MESH_DEVICE": "N151"}, ["N151", *SPECS]),
        ({"FAKE_DEVICE": "GT"}, ["GT", "TG"]),
        ({"FAKE_DEVICE": "TG", "TT_BACKEND": "silicon"}, ["FAKE_DEVICE", "MESH_DEVICE=TG"]),
        ({"TT_BACKEND": "cuda"}, ["silicon", "dry-run", "emulator"]),
        ({"CI": "maybe"}, ["CI", "maybe", "false"]),
        ({"MAX_PREFILL_CHUNK_SIZE": "4k"}, ["MAX_PREFILL_CHUNK_SIZE", "whole number"]),
        ({"MAX_PREFILL_CHUNK_SIZE": "0"}, ["thousands of tokens"]),
        ({"PAD_MLP_CORES": "12"}, ["multiple of 8"]),
        ({"LLAMA_DIR": "/no/such/place"}, ["/no/such/place", "no such directory"]),
        ({"TT_EMULATOR_DEVICE": "tpu"}, ["cpu", "cuda", "meta"]),
        ({"TT_EMULATOR_THREADS": "0"}, ["TT_EMULATOR_THREADS", "from 1 to 256"]),
    ],
)
def test_a_wrong_value_is_one_line_that_says_what_works(
    environ: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        Settings.from_env(environ)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_threads_are_as_many_as_cores_that_affinity_and_group_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "_GROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.usable_cores() == cores
    assert Settings.from_env({"TT_EMULATOR_THREADS": "3"}).emulator_threads == 3
    assert Settings.from_env({"OMP_NUM_THREADS": "2,1"}).emulator_threads == 2
    assert Settings.from_env({}).emulator_threads is None
