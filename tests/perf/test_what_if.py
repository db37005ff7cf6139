"""What a prediction is asked for: devices, switches, harnesses, and what it refuses to answer."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.device_specs import SPECS
from models.registry import canonical_name
from perf.cost.software import SOFTWARE, software_named, switch_names
from perf.op_lists.kept import run_ops
from perf.predict.__main__ import main
from perf.predict.figures import Prediction, predict, workload_for
from perf.predict.harness import HARNESSES
from perf.predict.what_if import setting

ROOT = Path(__file__).parents[2]
MODEL = "Llama-3.1-8B"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "--device TG --model Llama-3.3-70B --software own --set dram_gbps=20 "
            "--set dram_sharded=5",
            "ms are predicted where the device needs",
        ),
        ("--device N150 --set gap_us=-100", "gap_us is -100: use a number above 0"),
        ("--device P150 --set mesh_shape=1,4", "4 chips of P150 have no links between them"),
        (
            "--device TG --set column_grid=9,10",
            "column_grid is (9, 10): a chip with (8, 9) cores beside a row that dispatches "
            "commands has (7, 10) beside a column",
        ),
        ("--device N150 --set column_grid=7,9", "but N150 names no column_readers"),
        ("--device TG --set compute_grid=8,8", "but the core at (0, 8) reads a DRAM bank"),
        ("--device T3K --data_parallel 3", "choose one of 1, 2, 4, 8"),
        ("--device N150 --without nosuchop", "nothing is called 'nosuchop' here: choose of"),
        (
            "--device T3K --model Llama-3.2-90B",
            "say how many a prompt has",
        ),
        ("--device N150 --software 2025+fast=true", "unknown switch 'fast': known are"),
        ("--device N150 --set fabric=perhaps", "fabric=perhaps: use true or false"),
        ("--device N150 --set dram=1", "unknown constant dram"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(arguments: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        main(["--model", MODEL, *arguments.split()])
    assert "\n" not in str(refusal.value)


def test_requirements_name_all_that_a_user_command_imports() -> None:
    """A command that README offers must not end in ModuleNotFoundError after `make setup`."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    installed = {re.split(r"[\s=<>;\[]", line)[0].lower() for line in text.splitlines()}
    named = {"yaml": "pyyaml", "markdown_it": "markdown-it-py", "PIL": "pillow"}
    own = {path.name for path in ROOT.iterdir() if path.is_dir()} | {"conftest"}
    own.add("llama_cpp")  # `--against` says how to install it, see test_host_llama.py
    missing = {}
    for package in ("perf", "lt"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    modules = [node.module or ""]
                for module in (name.split(".")[0] for name in modules):
                    if module in sys.stdlib_module_names or module in own | {"tests"}:
                        continue
                    if named.get(module, module).lower() not in installed:
                        missing[module] = str(path.relative_to(ROOT))
    assert not missing


def figures(
    text: str, harness: str = "demo", device: str = "N300", model: str = MODEL, **options: int
) -> Prediction:
    where = setting(device, text)
    how = HARNESSES[harness]
    workload = workload_for(model, where.spec, software=where.software, harness=how, **options)
    return predict(workload, software=where.software, harness=how)


def test_switches_are_independent_and_an_era_is_a_set_of_them() -> None:
    """Every switch can be set alone, and each of these changes what it should and nothing else."""
    assert software_named("2025+fabric=true").fabric and not SOFTWARE["2025"].fabric
    for name, kind in switch_names().items():
        text = "true" if kind == "bool" else "2"
        assert getattr(software_named(f"2025+{name}={text}"), name) in (True, 2)
    base = figures("2025", batch_size=32)
    sampled = figures("2025+device_sampling_users=32", batch_size=32)
    assert sampled.decode.breakdown["host"] < base.decode.breakdown["host"]
    traced = figures("2025+traced_prefill=true", batch_size=32)
    assert traced.ttft_ms <= base.ttft_ms
    assert traced.tokens_per_s_per_user == base.tokens_per_s_per_user
    one_reader, two = (
        figures(f"2026+blackhole_readers={n}", device="P150").decode.ms for n in (1, 2)
    )
    assert two < one_reader


# what setting a switch of a release alone does: base, setting, where, and whether a decode step
# and a first token come later (+1), earlier (-1) or as before (0)
SWITCHES = [
    ("2025", "device_sampling_users=32", {"batch_size": 32}, -1, -1),
    ("2025+device_sampling_users=32", "device_sampling_on_grid=true", {"device": "TG"}, -1, 0),
    ("2025", "fills_grid=false", {"device": "TG"}, -1, 0),
    ("2025", "traced_prefill=true", {"device": "T3K"}, 0, -1),
    ("2025", "batched_prefill=true", {"batch_size": 32}, 0, -1),
    ("2025", "early_links=true", {}, 1, 1),
    ("2025", "early_links=true", {"device": "N150"}, 0, 0),
    ("2025+traced_prefill=true", "fabric=true", {"device": "T3K"}, -1, -1),
    ("2025", "sharded_on_grid=true", {"device": "TG"}, -1, 0),
    ("2025", "reads_behind=true", {}, -1, 0),
    ("2025", "shared_grids=false", {"device": "N150"}, -1, 0),
    ("2025", "gathers_heads=false", {"device": "T3K"}, 1, 0),
    ("2025", "pads_heads=false", {"model": "Phi-3-mini-128k"}, -1, -1),
    ("2025", "blackhole_readers=2", {"device": "P150"}, -1, -1),
    ("2025", "waits_for_dispatch=true", {}, 0, 1),
    ("2026", "waits_for_dispatch=true", {}, 0, 0),  # what is traced is not dispatched
    ("2025+traced_prefill=true", "groups_beside=true", {"data_parallel": 2}, 0, -1),
    ("2025", "later_scores=true", {"prefill_len": 8192}, 0, -1),
    ("2025", "pads_prompts=false", {"prefill_len": 1100}, 0, -1),
    ("2025", "one_token_over=true", {"harness": "server"}, 0, 1),
    ("2025", "lean_host=true", {}, -1, 0),
    ("2025", "slow_first_request=true", {"harness": "server"}, 0, 1),
    ("2025", "slow_first_request=true", {}, 0, 0),  # a demo has no series of requests
    ("2025", "samples_idle_slots=true", {"harness": "server"}, 1, 0),
    ("2025+slow_first_request=true", "samples_idle_slots=true", {"harness": "server"}, 1, 1),
]


@pytest.mark.parametrize(("base", "switch", "where", "step", "first"), SWITCHES)
def test_each_switch_alone_moves_what_it_is_about(
    base: str, switch: str, where: dict[str, Any], step: int, first: int
) -> None:
    before, after = figures(base, **where), figures(f"{base}+{switch}", **where)
    assert _sign(after.decode.ms / before.decode.ms) == step
    assert _sign(after.ttft_ms / before.ttft_ms) == first


def test_no_switch_is_without_a_row_here() -> None:
    assert {switch.partition("=")[0] for _, switch, *_ in SWITCHES} == set(switch_names())


def _sign(ratio: float) -> int:
    return 0 if abs(ratio - 1) < 1e-9 else 1 if ratio > 1 else -1


def test_a_slower_host_takes_longer_for_its_own_work_alone() -> None:
    workload = workload_for(MODEL, SPECS["N300"], software=SOFTWARE["2025"], batch_size=32)
    found = {}
    for host in ("usual", "untuned", "1.5"):
        constants = setting("N300", "2025", host=host).constants
        found[host] = predict(workload, software=SOFTWARE["2025"], constants=constants)
    usual, slow = found["usual"], found["untuned"]
    for phase in ("decode", "prefill"):
        before, after = (getattr(each, phase).breakdown for each in (usual, slow))
        assert after["host"] == pytest.approx(2.5 * before["host"])
        kept = set(before) - {"host", "dispatch"}
        assert all(after[name] == pytest.approx(before[name]) for name in kept)
    assert usual.decode.ms < found["1.5"].decode.ms < slow.decode.ms
    assert usual.ttft_ms < found["1.5"].ttft_ms < slow.ttft_ms
    assert "host" in slow.unknown and "host work 2.5 times the usual" in slow.assumes


def test_more_chips_take_more_of_the_hosts_time_in_every_step() -> None:
    """Published: eight chips lose 1.6 ms of a step to the host, and one or two far less."""
    host = {
        device: figures("2025", device=device).decode.breakdown["host"]
        for device in ("N150", "N300", "T3K")
    }
    assert host["N150"] < host["N300"] < host["T3K"]
    assert host["T3K"] == pytest.approx(1.6, rel=0.25)
    assert host["T3K"] - host["N150"] == pytest.approx(7 * (host["N300"] - host["N150"]))


@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Qwen3-8B"])
@pytest.mark.parametrize("device", ["N150", "N300", "T3K", "P150"])
def test_tokens_of_many_users_are_chosen_sooner_on_the_device_than_on_the_host(
    device: str, model: str
) -> None:
    """Of a whole vocabulary, by this repository: the host's time follows the logits it reads."""
    where = {"device": device, "model": model, "batch_size": 32}
    on_device, on_host = (figures(f"own+device_sampling_users={n}", **where) for n in (32, 0))
    assert on_device.decode.ms < on_host.decode.ms
    of_one = figures("own+device_sampling_users=0", **(where | {"batch_size": 1}))
    vocabulary = {"Llama-3.1-8B": 128256, "Qwen3-8B": 151936}[model]
    more = on_host.decode.breakdown["host"] - of_one.decode.breakdown["host"]
    assert more > 1e-6 * 31 * vocabulary  # a millisecond for each million


@pytest.mark.parametrize("software", SOFTWARE)
@pytest.mark.parametrize(("device", "groups"), [("T3K", 4), ("T3K", 8), ("N300", 2), ("P150x4", 4)])
def test_no_part_of_a_breakdown_is_negative_and_the_parts_are_the_whole(
    device: str, groups: int, software: str
) -> None:
    found = figures(software, device=device, data_parallel=groups)
    for phase in (found.decode, found.prefill):
        assert min(phase.breakdown.values()) >= 0
        assert sum(phase.breakdown.values()) == pytest.approx(phase.ms)


def test_a_server_pays_for_idle_slots_and_more_so_with_longer_prompts() -> None:
    lost = []
    for length in (128, 4096):
        demo, server = (
            figures("2025", harness, prefill_len=length).decode.ms for harness in ("demo", "server")
        )
        lost.append(server - demo)
    assert 0 < lost[0] < lost[1]


def test_a_server_answers_all_that_wait_before_it_goes_on() -> None:
    one, many = (figures("2026", "server", batch_size=users).ttft_ms for users in (1, 32))
    assert many > 10 * one


def test_intervals_are_wider_for_what_was_never_fitted() -> None:
    def width(found: Prediction) -> float:
        low, high = found.interval["tokens_per_s_per_user"]
        return high / low

    known, unknown = figures("2025"), figures("2026", device="P300")
    assert not known.unknown
    assert "device" in unknown.unknown
    assert width(unknown) > width(known) > 1.1
    apart = figures("2026", device="P150")  # each was fitted, but never together
    assert apart.unknown == ("combination",)
    assert width(apart) > width(known)


@pytest.mark.parametrize(
    ("model", "device", "rows"),
    [
        ("Llama-3.1-8B", "N150", 512),
        ("Llama-3.2-3B", "N150", 1024),
        ("Llama-3.1-8B", "N300", 1024),
        ("Qwen2.5-7B", "N300", 512),
        ("Llama-3.1-8B", "P150", 512),
    ],
)
def test_the_mlp_of_older_software_takes_prompts_in_its_known_slices(
    model: str, device: str, rows: int
) -> None:
    """What tt_transformers calls prefill_len_cutoff."""
    workload = workload_for(model, SPECS[device], software=SOFTWARE["2025"], prefill_len=4096)
    taken = {
        op.record.inputs[0].shape[-2]
        for op in run_ops(workload).prefill.ops
        if op.record.scope.endswith(".mlp") and op.record.name == "linear"
    }
    assert taken == {rows}


def test_prompts_are_padded_as_the_software_of_the_release_pads_them() -> None:
    generic = SOFTWARE["2025"]
    padded = [generic.padded_len(n) for n in (1, 128, 129, 1000, 3000, 4096, 5000)]
    assert padded == [128, 128, 256, 1024, 4096, 4096, 6144]
    assert replace(generic, one_token_over=True).padded_len(1024) == 2048
    assert SOFTWARE["own"].padded_len(1000) == 0


@pytest.mark.parametrize(
    "device", [name for name, spec in SPECS.items() if spec.arch == "blackhole"]
)
def test_blackhole_boxes_answer_for_a_model_that_fits_them(device: str) -> None:
    spec, software = SPECS[device], SOFTWARE["2026"]
    job = workload_for(MODEL, spec, software=software)
    found = predict(job, software=software)
    assert 0 < found.decode.limit_ms < found.decode.ms
    assert run_ops(job).mesh_shape == spec.mesh_shape


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Mistral-7B", "Mistral-7B-Instruct-v0.3"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B-Instruct-v0.3"),
        ("Qwen2.5-32B", "Qwen2.5-Coder-32B"),
        ("Qwen/Qwen2.5-32B-Instruct", "Qwen2.5-Coder-32B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
    ],
)
def test_names_that_people_type_mean_a_known_model(typed: str, meant: str) -> None:
    assert canonical_name(typed) == meant
