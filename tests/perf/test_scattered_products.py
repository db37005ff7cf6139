"""Products whose sum is scattered beside them: planned where their price is lower than apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.device_specs import SPECS
from perf.cost.constants import load_constants
from perf.cost.price import kernel_us
from perf.cost.software import OWN
from perf.cost.units import Situation
from perf.op_lists.kept import run_ops
from perf.predict.figures import workload_for

LONG, SHORT = 8192, 2048  # eight slices, and two
BOTH, DOWN = {"attention", "mlp"}, {"mlp"}


@pytest.mark.parametrize("optimizations", ["performance", "accuracy"])
@pytest.mark.parametrize(
    ("model", "device", "length", "planned"),
    [
        ("Llama-3.1-8B", "T3K", LONG, BOTH),
        ("Llama-3.1-8B", "T3K", SHORT, BOTH),
        ("Llama-3.2-3B", "T3K", LONG, BOTH),
        ("Llama-3.2-3B", "T3K", SHORT, DOWN),
        ("Llama-3.2-1B", "T3K", LONG, DOWN),  # its output projection takes as long as a start
        ("Llama-3.1-70B", "T3K", LONG, BOTH),
        ("Llama-3.1-70B", "T3K", SHORT, {"attention"}),  # two slices do not pay for a row of cores
        ("Llama-3.1-8B", "T3K", 1024, set()),  # one slice: nothing to be made meanwhile
        ("Llama-3.1-8B", "N300", LONG, set()),  # no ring
        ("Llama-3.1-8B", "P150x4", SHORT, BOTH),
        ("Llama-3.1-70B", "P150x4", SHORT, BOTH),  # here rows of cores are to spare
    ],
)
def test_products_lie_beside_scatters_where_both_apart_take_longer(
    model: str, device: str, length: int, planned: set[str], optimizations: str
) -> None:
    spec = SPECS[device]
    work = workload_for(model, spec, prefill_len=length, optimizations=optimizations)
    together = [
        op.record
        for op in run_ops(work).prefill.ops
        if op.record.name == "experimental.matmul_reduce_scatter_async"
    ]
    assert {record.scope.rpartition(".")[2] for record in together} == planned
    now = Situation(spec, load_constants(), OWN, prefill=True)
    for record in together:
        rows = {"per_core_M": 4, "compute_with_storage_grid_size": "8x8"}
        product = replace(record, name="linear", attributes={**record.attributes, **rows})
        scatter = replace(record, name="reduce_scatter", inputs=record.outputs[:1])
        apart = [kernel_us(one, now) for one in (product, scatter)]
        assert record.inputs[0].shape[1:3] == (length // 1024, 1024)
        assert max(apart) < kernel_us(record, now) < sum(apart), record.scope
