"""Products whose input is gathered beside them: planned where their price is lower than apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backends.device_specs import SPECS
from models.footprint import dram_bytes
from models.kv_cache import CacheConfig
from models.registry import load_config
from perf.cost.constants import load_constants
from perf.cost.price import kernel_us
from perf.cost.software import OWN
from perf.cost.units import Situation
from perf.op_lists.kept import run_ops
from perf.predict.figures import workload_for
from runtime.blueprint import Blueprint, LoadOptions, draw
from runtime.settings import Settings

BOTH: set[str] = {"attention", "mlp"}
FUSED = "experimental.all_gather_matmul_async"


@pytest.mark.parametrize("optimizations", ["performance", "accuracy"])
@pytest.mark.parametrize(
    ("model", "device", "length", "planned"),
    [
        ("Llama-3.2-1B", "T3K", 128, BOTH),
        ("Llama-3.1-8B", "T3K", 128, BOTH),
        ("Llama-3.1-70B", "T3K", 128, BOTH),
        ("Llama-3.1-8B", "T3K", 384, BOTH),  # two rows of tiles a core, with two rows less, too
        ("Llama-3.1-8B", "T3K", 512, set()),  # three rows for two cost more than is hidden
        ("Llama-3.1-8B", "T3K", 2048, set()),  # two slices
        ("Llama-3.1-8B", "P150x8", 1024, BOTH),  # here rows of cores are to spare
        ("Llama-3.1-8B", "P150x4", 128, set()),  # the op counts the parts of eight chips
        ("Llama-3.1-8B", "N300", 128, set()),  # no ring
    ],
)
def test_inputs_are_gathered_beside_products_where_both_apart_take_longer(
    model: str, device: str, length: int, planned: set[str], optimizations: str
) -> None:
    spec = SPECS[device]
    ops = run_ops(workload_for(model, spec, prefill_len=length, optimizations=optimizations))
    together = [op.record for op in ops.prefill.ops if op.record.name == FUSED]
    assert {record.scope.rpartition(".")[2] for record in together} == planned
    now = Situation(spec, load_constants(), OWN, prefill=True)
    for record in together:
        share, weight, _ = record.inputs
        whole, _ = record.outputs
        alone = replace(record.cost, link_bytes=record.cost.link_bytes * 7 // 8)
        gather = replace(record, name="all_gather", inputs=(share,), outputs=(whole,), cost=alone)
        product = replace(record, name="linear", inputs=(whole, weight))
        apart = [kernel_us(one, now) for one in (gather, product)]
        assert max(apart) < kernel_us(record, now) < sum(apart), record.scope


def blueprint(model: str, pages: int, *, ring: bool | None = None, **lines: Any) -> Blueprint:
    options = LoadOptions(
        model=model, device="T3K", max_seq_len=32768, cache=CacheConfig(32, pages), ring=ring
    )
    return draw(options, Settings(backend="emulator", **lines), load_config(model))


def test_weights_are_copied_for_gathers_where_they_fit_beside_all_else() -> None:
    small, large = blueprint("Llama-3.1-70B", 1024), blueprint("Llama-3.1-70B", 2048)
    assert (small.gathers, large.gathers) == (True, False)
    assert small.needs.copies > 2 * 2**30 and not large.needs.copies
    assert small.max_prefill_chunk == large.max_prefill_chunk
    room = small.needs.prefill_room(small.max_prefill_chunk)
    assert small.needs.standing + small.needs.cache + room <= dram_bytes(small.spec)
    # pages come first: as many fit as if nothing was copied
    fits = small.blocks_that_fit(32768)
    assert fits == large.blocks_that_fit(32768) > 2048
    assert not blueprint("Llama-3.1-70B", fits).gathers
    blueprint("Llama-3.1-70B", fits).check_fits()
    # a part of the model runs as the whole does
    assert not replace(large, options=replace(large.options, layers=range(1))).gathers


def test_gathers_on_lines_keep_weights_single() -> None:
    assert blueprint("Llama-3.1-8B", 1024).gathers
    assert not blueprint("Llama-3.1-8B", 1024, ring=False).gathers
    assert not blueprint("Llama-3.1-8B", 1024, line_reduce_scatter=True).gathers
    assert not blueprint("Llama-3.1-8B", 1024, line_all_gather=True).gathers
