"""Properties of the performance model, whatever its constants are."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from statistics import fmean
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import backends
from backends.device_specs import SPECS
from models.footprint import kept_bytes_per_token
from models.plans.fused import shard
from models.plans.norm import shares_rows
from models.plans.target import Target
from models.precision import ModelPrecision
from models.registry import load_config
from perf.calibrate.made_ops import all_parts
from perf.calibrate.op_rows import (
    bank_product,
    collective,
    decode_scores,
    load_op_rows,
    prefill_scores,
    product,
    simple,
    tensor,
)
from perf.calibrate.published_rows import load_rows
from perf.cost.constants import load_constants
from perf.cost.links import pass_us
from perf.cost.price import PRICES, op_time
from perf.cost.software import SOFTWARE
from perf.cost.units import Situation, cost_now
from perf.op_lists.kept import ROOT, run_ops
from perf.predict.__main__ import main as predict_main
from perf.predict.figures import Prediction, predict, predict_ops, workload_for

CONSTANTS = load_constants()
N300 = SPECS["N300"]
SMALL = "Llama-3.2-1B"

tiles = st.integers(1, 64)
formats = st.sampled_from(["bfp4", "bfp8", "bf16"])
fidelities = st.sampled_from(["LoFi", "HiFi2", "HiFi4"])
softwares = st.sampled_from([SOFTWARE[name] for name in ("2025", "2026", "own")])
chip_counts = st.sampled_from([2, 4, 8])
devices = st.sampled_from([SPECS[name] for name in ("N150", "T3K", "P150")])


def state(spec: object = N300, **values: object) -> Situation:
    return Situation(spec, CONSTANTS, **({"software": SOFTWARE["own"]} | values))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(tiles, tiles, formats, fidelities, devices, softwares)
def test_no_matmul_is_faster_than_the_hardware(k, n, dtype, fidelity, spec, software) -> None:
    now = state(spec, software=software)
    streamed = bank_product(32 * k, 32 * n, dtype, fidelity, block=1, banks=spec.dram_banks)
    for record in (streamed, product(256, 32 * k, 32 * n, dtype, fidelity)):
        time = op_time(record, now)
        weight = record.inputs[1]
        size = {"bfloat4_b": 576, "bfloat8_b": 1088, "bfloat16": 2048}[weight.dtype] * k * n
        assert time.us >= time.limit_us
        assert time.us >= size / (spec.dram_gbps * 1000)


@settings(deadline=None, max_examples=60)
@given(tiles, tiles, formats, fidelities, devices)
def test_a_larger_weight_never_takes_less_time(k, n, dtype, fidelity, spec) -> None:
    now = state(spec)
    times = [
        op_time(bank_product(32 * k, 32 * m, dtype, fidelity, block=1, banks=spec.dram_banks), now)
        for m in (n, n + 1, 2 * n)
    ]
    assert times[0].us <= times[1].us <= times[2].us


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 131072), st.integers(1, 8192), st.sampled_from([1, 8, 32]))
def test_a_longer_context_never_takes_less_time(context, more, users) -> None:
    record = decode_scores(users, 32, 8, 128, "8x8")
    short, long = (
        op_time(record, state(context=length, active_users=users)).us
        for length in (context, context + more)
    )
    assert short <= long
    first = op_time(prefill_scores(8, 2, 1024, 128, 64), state()).us
    assert first <= op_time(prefill_scores(8, 2, 2048, 128, 64), state()).us


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4096), st.sampled_from([2, 4, 8]), st.integers(1, 4), st.booleans(), softwares
)
def test_more_links_and_fewer_bytes_never_take_more_time(
    size, chips, links, ring, software
) -> None:
    now = state(SPECS["T3K"], software=software)
    volume = 1024.0 * size
    for kind in ("gather", "scatter"):
        slow = pass_us(kind, chips, ring, volume, 12.5 * links, now)
        assert pass_us(kind, chips, ring, volume, 12.5 * (links + 1), now) <= slow
        assert pass_us(kind, chips, ring, volume / 2, 12.5 * links, now) <= slow
    record = collective("all_gather", (1, 1, 32, 1024 * chips), "bf16", chips=chips, ring=ring)
    time = op_time(record, now)
    assert time.us >= time.limit_us > 0


def test_an_op_without_a_price_or_a_cost_is_refused_by_name() -> None:
    known = product(128, 1024, 1024, "bfp8", "HiFi2")
    with pytest.raises(ValueError, match=r"^ttnn\.nobody has no price: .*price\.py"):
        op_time(replace(known, name="nobody"), state())
    with pytest.raises(ValueError, match="linear was recorded without its cost"):
        op_time(replace(known, cost=None), state())


def test_every_op_that_runs_on_a_device_has_a_price() -> None:
    backends.select("emulator")
    assert backends.ttnn
    from backends.emulator.launch import REGISTRY

    to_and_from_the_host = {
        "ConcatMesh2dToTensor", "ReplicateTensorToMesh", "ShardTensor2dMesh",
        "ShardTensorToMesh", "begin_trace_capture",
        "copy_host_to_device_tensor", "deallocate", "dump_tensor", "empty", "end_trace_capture",
        "execute_trace", "from_device", "from_torch", "full", "get_device_tensors", "load_tensor",
        "release_trace", "to_device", "to_torch", "zeros",
    }  # fmt: skip
    assert set(REGISTRY) - to_and_from_the_host == set(PRICES)


def test_a_price_follows_the_cost_that_the_op_states() -> None:
    """Twice the stated bytes, FLOPs or link bytes move the limit of each kind of op."""
    streamed = bank_product(4096, 4096, "bfp8", "HiFi2", block=8)
    gather = collective("all_gather", (1, 1, 32, 8192), "bf16", chips=2)
    for record, work in ((streamed, "dram_bytes"), (gather, "link_bytes")):
        assert record.cost is not None
        twice = replace(record.cost, **{work: 2 * getattr(record.cost, work)})
        once, double = op_time(record, state()), op_time(replace(record, cost=twice), state())
        assert double.limit_us == pytest.approx(2 * once.limit_us)
        assert double.us > once.us


@pytest.mark.parametrize(
    ("published", "chips", "axis", "width", "cores"),
    [("decode/AllReduce", 8, 0, 2048, 16), ("tail/AllReduce", 4, 1, 16384, 32)],
)
def test_sums_of_whole_parts_take_what_a_galaxy_was_timed_at(
    published: str, chips: int, axis: int, width: int, cores: int
) -> None:
    """The second was not used to find what adding costs. Both ran over all four links."""
    timed = fmean(row.us for row in load_op_rows()[0] if row.name.startswith(published))
    whole, spec = (1, 1, 32, width), replace(SPECS["TG"], links=(4, 4))
    known = collective("all_gather", whole, "bfp8", chips=chips, axis=axis, ring=True, links=4)
    out = tensor(whole, buffer="L1", cores=cores)
    cost = replace(known.cost, link_bytes=chips * known.cost.link_bytes)
    record = replace(known, name="experimental.all_reduce_async", outputs=(out,), cost=cost)
    assert op_time(record, state(spec, is_grid=True)).us == pytest.approx(timed, rel=0.03)


@pytest.mark.parametrize(("device", "width"), [("TG", 2048), ("T3K", 512), ("P150x4", 1024)])
def test_cores_share_the_rows_of_a_norm_where_that_is_sooner(device: str, width: int) -> None:
    spec, shared = SPECS[device], {"use_2d_core_grid": True}
    sharding = SimpleNamespace(local_residual=width)
    facts = {"is_own": True, "left_bytes": spec.l1_free_bytes}
    target = cast(Target, SimpleNamespace(spec=spec, sharding=sharding, **facts))
    chosen = set()
    for rows in range(32, 2049, 32):
        x, stats = tensor((1, 1, rows, width)), tensor((1, 1, rows, 32))
        halves = [simple("rms_norm_pre_all_gather", x, stats),
                  simple("rms_norm_post_all_gather", x, x)]  # fmt: skip
        alone = sum(op_time(half, state(spec)).us for half in halves)
        chosen.add(shares_rows(target, rows))
        if shares_rows(target, rows):
            halves = [replace(half, attributes=shared) for half in halves]
            assert sum(op_time(half, state(spec)).us for half in halves) < alone, rows
    assert chosen == {True, False}


def test_ops_of_a_fused_layer_take_what_a_galaxy_was_timed_at() -> None:
    """Each within its spread, and together: no op is cheap at another's cost."""
    layer = [
        row
        for row in load_op_rows()[0]
        if row.name.startswith("decode/") and row.software.plans == "galaxy 2025"
    ]
    found = [sum(op_time(x, row.state(CONSTANTS)).us for x in row.records) for row in layer]
    assert len(layer) == 16
    for row, us in zip(layer, found, strict=True):
        assert us == pytest.approx(row.us, rel=0.12), row.name
    assert sum(found) == pytest.approx(sum(row.us for row in layer), rel=0.02)


@pytest.mark.parametrize("length", [1024, 4096])
def test_users_of_a_galaxy_slow_each_others_attention_as_published(length: int) -> None:
    """32 of them make a step 1.0 and 3.9 ms longer than one: their keys are read beside no work."""
    one, many = sorted(
        (row for row in load_rows()
         if "galaxy" in row.source and "demo" in row.source and row.prefill_len == length),
        key=lambda row: row.batch_size,
    )  # fmt: skip
    published = 1000 / cast(float, many.tokens_per_s_per_user) - 1000 / cast(
        float, one.tokens_per_s_per_user
    )
    steps = [predict(row.workload, software=row.software).decode.ms for row in (one, many)]
    assert steps[1] - steps[0] == pytest.approx(published, rel=0.3)


def test_the_output_projection_on_a_ring_takes_what_a_galaxy_was_timed_at() -> None:
    (row,) = (row for row in load_op_rows()[0] if row.name == "tail/LM head matmul")
    (record,) = row.records
    assert op_time(record, row.state(CONSTANTS)).us == pytest.approx(row.us, rel=0.03)


def test_chips_of_a_line_wait_for_each_others_parts_as_in_any_collective() -> None:
    """A Galaxy's timings hold what its chips wait; a line of 8 was timed with other collectives."""
    record, own = all_parts(2048, "bfp8"), state(SPECS["T3K"])
    assert own.software.fabric
    waits = op_time(record, own).us - op_time(record, replace(own, is_grid=True)).us
    assert waits == pytest.approx(6 * own.constants.link_skew_fabric_us)


def test_more_cores_share_a_long_context_of_one_head_and_no_short_one() -> None:
    """70B on T3K has one head of keys a chip: 16 cores of 64 read it unless the plan says more."""
    workload = workload_for(
        "Llama-3.1-70B", SPECS["T3K"], software=SOFTWARE["own"], prefill_len=65536
    )
    scores = next(
        op.record for op in run_ops(workload).decode.ops if "attention_decode" in op.record.name
    )
    few = replace(scores, attributes=dict(scores.attributes) | {"max_cores_per_head_batch": 16})
    long, short = (state(SPECS["T3K"], context=context) for context in (65536, 128))
    assert op_time(scores, short).us == op_time(few, short).us
    assert op_time(scores, long).us < 0.8 * op_time(few, long).us


def test_attention_gains_from_a_wide_grid_what_was_published() -> None:
    """2,950 us on 8 x 8 cores of a p100a, 2,237 us on 11 x 10 (tt-metal#56694)."""
    narrow, wide = (
        replace(record, attributes=dict(record.attributes) | {"compute_with_storage_grid_size": at})
        for at, record in ((at, prefill_scores(32, 8, 4096, 128, 256)) for at in ("8x8", "11x10"))
    )
    now = state(SPECS["P100"])
    assert op_time(wide, now).us / op_time(narrow, now).us == pytest.approx(2237 / 2950, rel=0.02)


def test_a_cache_update_moves_whole_tiles_and_shrinks_with_its_users() -> None:
    """8B on N150 with 32 users: K and V of 32 layers, 8 heads of 4 tiles, read and written back."""
    workload = workload_for("Llama-3.1-8B", SPECS["N150"], software=SOFTWARE["own"], batch_size=32)
    updates = [op for op in run_ops(workload).decode.ops if op.record.name.endswith("update_cache")]
    assert sum(op.count * len(op.record.outputs) for op in updates) == 64
    moved = 2 * 2 * 32 * 8 * 4 * 1088  # of both caches, in one op
    for op in updates:
        assert cost_now(op.record, state(active_users=32)).dram_bytes == moved
        assert cost_now(op.record, state(active_users=8)).dram_bytes == moved / 4


def figures(device: str = "N300", **options: object) -> Prediction:
    spec = options.pop("spec", SPECS[device])
    software = SOFTWARE["own"]
    workload = workload_for(SMALL, spec, software=software, **options)  # type: ignore[arg-type]
    return predict(workload, software=software)


def test_more_context_and_more_bytes_are_never_faster() -> None:
    base = figures()
    for slower in (
        figures(prefill_len=1024),
        figures(optimizations="accuracy"),
        figures(spec=replace(N300, dram_gbps=144.0)),
        figures(spec=replace(N300, link_gbps=3.0)),
    ):
        assert slower.tokens_per_s_per_user <= base.tokens_per_s_per_user
        assert slower.ttft_ms >= base.ttft_ms * 0.999


def test_more_users_slow_each_other_down_and_gain_together() -> None:
    one, many = figures(), figures(batch_size=32)
    assert many.tokens_per_s_per_user < one.tokens_per_s_per_user
    assert many.tokens_per_s > one.tokens_per_s
    assert many.ttft_ms < one.ttft_ms  # prompts are prefilled together


@pytest.mark.parametrize("device", ["N150", "T3K", "TG", "P150"])
def test_a_prediction_stays_above_the_physical_limit_and_adds_up(device: str) -> None:
    found = figures(device)
    for phase in (found.decode, found.prefill):
        assert 0 < phase.limit_ms < phase.ms
        assert sum(phase.breakdown.values()) == pytest.approx(phase.ms)
        assert sum(phase.bounds.values()) == pytest.approx(phase.ms)


def test_layers_that_repeat_count_like_layers_that_ran() -> None:
    """A recorded run of two layers costs what one layer counted twice costs."""
    run = run_ops(workload_for(SMALL, N300, software=SOFTWARE["own"]))
    twice = [op for op in run.decode.ops for _ in range(op.count)]
    flat = replace(run, decode=replace(run.decode, ops=tuple(replace(op, count=1) for op in twice)))
    options = {"users": 1, "prefill_len": 128, "context": 228}
    assert predict_ops(flat, N300, **options).decode.ms == pytest.approx(  # type: ignore[arg-type]
        predict_ops(run, N300, **options).decode.ms  # type: ignore[arg-type]
    )


def test_the_command_line_answers_in_json_and_refuses_in_one_line(tmp_path, capsys) -> None:
    common = ["--model", SMALL, "--prefill_len", "128", "--json"]
    assert predict_main([*common, "--device", "N300"]) == 0
    answer = json.loads(capsys.readouterr().out)
    wanted = {"tokens_per_s_per_user", "ttft_ms", "interval", "limit_fraction", "breakdown"}
    assert wanted <= set(answer)
    imagined = tmp_path / "wide.json"
    imagined.write_text(json.dumps({"base": "N300", "dram_gbps": 1000}))
    assert predict_main([*common, "--device", str(imagined)]) == 0
    assert json.loads(capsys.readouterr().out)["ttft_ms"] <= answer["ttft_ms"]
    assert predict_main([*common, "--device", "N300", "--without", "all_gather"]) == 0
    faster = json.loads(capsys.readouterr().out)
    assert faster["tokens_per_s_per_user"] > answer["tokens_per_s_per_user"]
    picture, ops = tmp_path / "new" / "time.svg", tmp_path / "other" / "ops.json"
    assert (
        predict_main([*common, "--device", "N300", "--plot", str(picture), "--trace", str(ops)])
        == 0
    )
    assert "</svg>" in picture.read_text() and json.loads(ops.read_text())["traceEvents"]
    capsys.readouterr()
    for wrong in (["--device", "N3000"], ["--device", "N300", "--set", "dram=1"]):
        with pytest.raises(ValueError, match="unknown") as refusal:
            predict_main([*common, *wrong])
        assert "\n" not in str(refusal.value)


def test_the_footprint_counts_what_replayed_prefills_keep() -> None:
    """Buffers of one layer, as its op list names them; both norms exchange through one."""
    work = workload_for("Llama-3.3-70B", SPECS["TG"], batch_size=1, prefill_len=128)
    kept = 0
    for op in run_ops(work).prefill.ops:
        if op.count == 80 and op.record.name.endswith("_minimal_async"):
            kept += sum(buffer.stored_bytes for buffer in op.record.inputs[1:])
        if op.count == 80 and op.record.name.endswith("all_gather_async"):
            share = 0.5 if op.record.outputs[0].shape[-1] == 128 else 1
            kept += round(share * op.record.outputs[0].stored_bytes)
    config = load_config("Llama-3.3-70B")
    sizes = shard(config, SPECS["TG"].mesh_shape, SPECS["TG"])
    layer = ModelPrecision.preset("performance", config).layer(0)
    assert 128 * kept_bytes_per_token(sizes, layer) == pytest.approx(kept, rel=0.01)


def test_asking_again_takes_a_moment_and_loads_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "perf.predict", "--model", SMALL]
    for _ in range(2):
        again = subprocess.run(
            [*command, "--device", "N150"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    assert "tokens/s/user" in again.stdout
    assert " torch\n" not in again.stderr and " matplotlib\n" not in again.stderr
