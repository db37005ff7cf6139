"""What is refused, and said, before vLLM is even imported: options, versions, ports, models."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from runtime.settings import Settings
from serving import launch
from serving.options import ServeOptions, group_batch, load_options, serving_device

ROOT = Path(__file__).resolve().parents[2]
HAS_VLLM = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm"
)
PUBLISHED = (
    '{"dispatch_core_axis": "col", "sample_on_device_mode": "all", '
    '"fabric_config": "FABRIC_1D_RING", "worker_l1_size": 1344544, "trace_region_size": 95693824}'
)


def test_the_published_config_acts_or_says_that_it_does_not() -> None:
    options = ServeOptions.from_json(PUBLISHED)
    settings = Settings(backend="emulator", device="TG")
    loaded = load_options(
        options,
        settings,
        model="default",
        weights="random",
        users=32,
        max_seq_len=1024,
        block_size=32,
    )
    assert (loaded.ring, loaded.worker_l1_size, loaded.trace_region_size) == (
        True,
        1344544,
        95693824,
    )
    assert options.sample_on_device_mode == "all"
    said = " ".join(options.notices())
    assert "dispatch_core_axis 'col'" in said and "sample_on_device_mode 'all'" in said
    assert not ServeOptions().notices()
    assert ServeOptions.from_dict(options.to_dict()) == options


@pytest.mark.parametrize(
    ("text", "found", "instead"),
    [
        ("{oops", "not valid JSON", "write it like"),
        ("[1]", "[1]", "known keys are"),
        ('{"sample_on_devise": "all"}', "sample_on_devise", "sample_on_device_mode"),
        ('{"fabric_config": "RING"}', "'RING'", "FABRIC_1D_RING"),
        ('{"data_parallel": 0}', "data_parallel is 0", "from 1 to 1024"),
        ('{"is_galaxy": "yes"}', "'yes'", "true or false"),
        ('{"worker_l1_size": "big"}', "'big'", "whole number"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_what_works(
    text: str, found: str, instead: str
) -> None:
    with pytest.raises(ValueError) as error:
        ServeOptions.from_json(text)
    line = str(error.value)
    assert found in line and instead in line and "\n" not in line


def test_is_galaxy_must_agree_with_the_device() -> None:
    settings = Settings(backend="emulator", device="N150")
    with pytest.raises(ValueError, match="MESH_DEVICE=TG"):
        serving_device(ServeOptions(is_galaxy=True), settings)
    assert serving_device(ServeOptions(is_galaxy=True), Settings(backend="emulator")).name == "TG"


def test_users_are_dealt_to_groups_of_a_size_that_engines_have() -> None:
    assert [group_batch(n, 1) for n in (1, 3, 32)] == [1, 4, 32]
    assert group_batch(33, 2) == 32
    with pytest.raises(ValueError, match="hold 64"):
        group_batch(65, 2)


def test_a_page_budget_too_small_or_too_large_is_refused() -> None:
    import backends

    backends.select("emulator")
    from models.registry import load_config
    from runtime.blueprint import draw

    settings = Settings(backend="emulator", device="N150")
    wanted = load_options(
        ServeOptions(),
        settings,
        model="Llama-3.1-8B",
        weights="placeholder",
        users=32,
        max_seq_len=32768,
        block_size=64,
    )
    plan = draw(wanted, settings, load_config("Llama-3.1-8B"))
    assert launch.page_count(plan, None) == plan.blocks_that_fit(32768) < 32 * 512
    for pages in (512, 10**6):
        with pytest.raises(ValueError, match="one request needs 512"):
            launch.page_count(plan, pages)


def test_a_missing_vllm_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(launch, "version", nothing)
    with pytest.raises(ValueError, match="make setup-vllm"):
        launch.check_vllm()


def test_another_version_of_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "version", lambda name: "0.31.0")
    with pytest.raises(ValueError, match=rf"0\.31\.0 .* {launch.wanted_version()}"):
        launch.check_vllm()
    monkeypatch.setattr(launch, "version", lambda name: launch.wanted_version() + "+empty")
    launch.check_vllm()


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="choose another --host or --port"):
            launch.check_port("127.0.0.1", taken.getsockname()[1])


def test_pages_of_groups_are_parts_of_what_was_asked_for() -> None:
    import backends

    backends.select("emulator")
    from models.registry import load_config
    from runtime.blueprint import draw

    settings = Settings(backend="emulator", device="T3K")
    wanted = load_options(
        ServeOptions(data_parallel=4),
        settings,
        model="Llama-3.2-1B",
        weights="placeholder",
        users=32,
        max_seq_len=1024,
        block_size=32,
    )
    plan = draw(wanted, settings, load_config("Llama-3.2-1B"))
    assert launch.page_count(plan, None) == 8 * 32 + 1
    assert launch.page_count(plan, 400) == 100
    with pytest.raises(ValueError, match="multiple of 4"):
        launch.page_count(plan, 402)


def test_old_flags_are_said_to_have_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    launch.add_arguments(parser)
    given = parser.parse_args(["--num_scheduler_steps", "30", "--override_tt_config", PUBLISHED])
    arguments = launch.engine_arguments(given, None)
    assert "no effect" in capsys.readouterr().out
    assert arguments["additional_config"]["tt"]["worker_l1_size"] == 1344544
    assert (Path(arguments["model"]) / "tokenizer.json").is_file()


# program, arguments, what it says; and whether it needs vLLM for that
ENDINGS = [
    ("server_example_tt.py", ["--override_tt_config", '{"nope": 1}'], "known keys are", False),
    ("offline_inference_tt.py", ["--model", "no/such/model"], "does not exist", False),
    ("server_example_tt.py", ["--model", "no/such/model"], "does not exist", True),
    ("server_example_tt.py", ["--max_seqs_in_batch", "0"], "from 1", False),
    ("server_example_tt.py", ["--port", "65536"], "from 1 to 65535", False),
    ("example_requests_client.py", ["--prompt_json_path", "nothing.json"], "one of", False),
    ("example_requests_client.py", ["--num_concurrent", "0"], "from 1", False),
    ("example_requests_client.py", ["--base_url", "http://127.0.0.1:1/v1"], "is it up", True),
    ("offline_inference_tt.py", ["--num_gpu_blocks_override", "2"], "request needs 64", True),
    (
        "server_example_tt.py",
        ["--num-gpu-blocks-override", "2", "--port", "8199"],
        "one request needs 64",
        True,
    ),
    ("offline_inference_tt.py", ["--max_model_len", "100000"], "8192 tokens", True),
    (
        "offline_inference_tt.py",
        ["--measure_perf", "--perf_prompt_len", "2048"],
        "--max_model_len",
        True,
    ),
]


@pytest.fixture(scope="module")
def endings(request: pytest.FixtureRequest) -> Iterator[dict[int, Future[Any]]]:
    """The programs that this run asks about, two at a time."""

    def end(number: int) -> Any:
        program, arguments, _, _ = ENDINGS[number]
        command = [sys.executable, str(ROOT / "demo" / program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    given = (item.callspec.params for item in request.session.items if hasattr(item, "callspec"))
    numbers = [params["ending"] for params in given if "ending" in params]
    if find_spec("vllm") is None:
        numbers = [number for number in numbers if not ENDINGS[number][3]]
    with ThreadPoolExecutor(2) as pool:
        yield {number: pool.submit(end, number) for number in numbers}


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(i, id=f"{program} {said}", marks=[HAS_VLLM] if needs_vllm else [])
        for i, (program, _, said, needs_vllm) in enumerate(ENDINGS)
    ],
)
def test_programs_end_with_one_line_about_bad_input(
    endings: dict[int, Future[Any]], ending: int
) -> None:
    result, said = endings[ending].result(), ENDINGS[ending][2]
    lines = result.stderr.strip().splitlines()
    assert result.returncode and said in lines[-1], result.stderr[-2000:]
    assert "Traceback" not in result.stderr
