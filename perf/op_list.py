"""The op list of a run without running it: the real forward on the emulator's meta tensors.

Layers of equal precision issue equal ops, so one of each kind is recorded and counted as often as
it occurs. Nothing here knows the network; next: op_cost.py times the records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.device_specs import DeviceSpec
from backends.op_record import OpRecord

BLOCK = 32  # positions of a cache page
GENERATED = 200  # tokens of a published run; its decode context grows by as many


@dataclass(frozen=True)
class Job:
    """What is to be predicted; the op list depends on nothing else."""

    model: str | Path
    spec: DeviceSpec
    batch_size: int = 1  # users of one data-parallel group
    prefill_len: int = 128
    optimizations: str = "performance"
    data_parallel: int = 1
    device_sampling: bool = True
    batched_prefill: bool = False
    pad_mlp_cores: int | None = None  # hidden width padded so that so many cores share it
    fill_grid: bool = False  # 2D meshes decode a whole tile of users
    pad_heads: bool = False  # head width padded to a power of two
    generated: int = GENERATED

    @property
    def context(self) -> int:
        """Positions an average decode step attends to."""
        return self.prefill_len + self.generated // 2


@dataclass(frozen=True)
class CountedOp:
    """One record and how many layers issue it."""

    record: OpRecord
    count: int


@dataclass(frozen=True)
class OpList:
    """Ops in order; `host_elements` of the result are read by the host."""

    ops: tuple[CountedOp, ...]
    host_elements: int = 0

    @classmethod
    def of_records(cls, records: Iterable[OpRecord], host_elements: int = 0) -> OpList:
        """Each record once: what a run that was recorded whole gives."""
        return cls(tuple(CountedOp(record, 1) for record in records), host_elements)


@dataclass(frozen=True)
class RunOps:
    """Op lists of one data-parallel group: a decode step, and the prefill of `prefill_users`."""

    decode: OpList
    prefill: OpList
    prefill_users: int
    mesh_shape: tuple[int, int]


def record_run(job: Job) -> RunOps:
    """Op lists of a job; raises ValueError for what no engine can do."""
    import backends

    if backends.select("emulator") != "emulator":
        raise AssertionError
    from models.registry import load_config
    from runtime.loading import LoadOptions, check_options, group_shape, precision_of

    config = load_config(job.model)
    padded = 1 << (config.head_dim - 1).bit_length()
    if job.pad_heads and padded != config.head_dim:  # frequencies change no op
        config = replace(config, head_dim=padded, rope_scaling=None)
    length = _round_up(job.prefill_len + job.generated, 1024)
    options = LoadOptions(
        model=str(job.model),
        optimizations=job.optimizations,
        max_batch_size=job.batch_size,
        max_seq_len=min(length, config.max_position_embeddings),
    )
    check_options(options, config)
    precision = precision_of(options, config)
    kinds = Counter(precision.layer(i) for i in range(config.num_layers))
    lists = []
    for kind, count in kinds.items():
        index = next(i for i in range(config.num_layers) if precision.layer(i) == kind)
        recorded = _record_layer(job, config, precision, group_shape(job.spec, job.data_parallel),
                                 index, options.max_seq_len)  # fmt: skip
        lists.append((recorded, index, count))
    first = lists[0][0]
    return replace(
        first,
        decode=replace(first.decode, ops=_merge([(r.decode, i, n) for r, i, n in lists])),
        prefill=replace(first.prefill, ops=_merge([(r.prefill, i, n) for r, i, n in lists])),
    )


def _record_layer(
    job: Job, config: Any, precision: Any, shape: tuple[int, int], index: int, max_seq_len: int
) -> RunOps:
    """Op lists of a model that has only the layer `index`."""
    from backends.emulator.chip.device import MeshDevice
    from models.collectives import Links
    from models.footprint import check_fits, footprint, max_prefill_chunk
    from models.kv_cache import CacheConfig
    from models.sharding import TILE, Sharding
    from models.transformer import ModelOptions, Transformer
    from perf.shapes import ShapeCheckpoint
    from runtime.engine import Engine

    users, pages = job.batch_size, _round_up(max_seq_len, BLOCK) // BLOCK
    used = _round_up(min(job.prefill_len + job.generated, max_seq_len), BLOCK) // BLOCK
    cache = CacheConfig(BLOCK, used * users)
    sharding = Sharding(config, *shape, job.pad_mlp_cores)
    slots = TILE if job.fill_grid and sharding.is_2d else sharding.slots(users)
    ring = any(job.spec.ring) and job.data_parallel == 1
    needs = footprint(
        sharding,
        precision,
        cache,
        spec=job.spec,
        slots=slots,
        max_seq_len=max_seq_len,
        ring=ring,
    )
    check_fits(needs, job.spec, config.name)
    options = ModelOptions(
        max_batch_size=users,
        slots=slots,
        max_seq_len=max_seq_len,
        cache=cache,
        layers=range(index, index + 1),
        pad_mlp_cores=job.pad_mlp_cores,
        links=Links(num_links=(max(1, job.spec.links[0]), max(1, job.spec.links[1])), ring=ring),
    )
    mesh = MeshDevice(job.spec, shape, "meta")
    checkpoint = ShapeCheckpoint(config)
    model = Transformer(mesh, job.spec, config, precision, checkpoint, None, options)
    engine = Engine(
        model,
        max_prefill_chunk=max_prefill_chunk(sharding, job.spec, needs),
        enable_trace=False,
        batched_prefill=job.batched_prefill,
    )
    found = _record_passes(engine, job, users, pages)
    engine.close()
    return replace(found, mesh_shape=shape)


def _record_passes(engine: Any, job: Job, users: int, pages: int) -> RunOps:
    """Op lists of one prefill and one decode step of an engine."""
    import torch

    from backends.op_record import record_ops
    from runtime.sampling import GREEDY, device_sampling

    max_seq_len = engine.max_seq_len
    table = torch.zeros(users, pages, dtype=torch.int32)
    together = users if job.batched_prefill else 1  # else all users run the same ops in turn
    with record_ops() as prefill:
        engine.prefill(
            [[0] * job.prefill_len] * together, slots=list(range(together)), page_table=table
        )
    sampling = device_sampling([GREEDY] * users) if job.device_sampling else None
    with record_ops() as decode:
        out = engine.decode(
            torch.zeros(users, dtype=torch.int32),
            torch.full((users,), min(job.prefill_len, max_seq_len - 1), dtype=torch.int32),
            page_table=table,
            sampling=sampling,
        )
    rows = engine.model.batch if sampling is None else 0
    return RunOps(
        decode=OpList.of_records(decode, rows * out.shape[-1] if out.dim() > 1 else 0),
        prefill=OpList.of_records(prefill, engine.vocab_size * together),
        prefill_users=together,
        mesh_shape=(1, 1),
    )


def _merge(lists: list[tuple[OpList, int, int]]) -> tuple[CountedOp, ...]:
    """One list with the layers of every kind: each list is (ops, its layer, how many alike)."""
    merged: list[CountedOp] = []
    base, index, count = lists[0]
    position = 0
    for op in base.ops:
        inside = op.record.scope.startswith(f"layers.{index}.")
        merged.append(CountedOp(op.record, count if inside else 1))
        if inside:
            position = len(merged)
    others = [
        CountedOp(op.record, count)
        for ops, index, count in lists[1:]
        for op in ops.ops
        if op.record.scope.startswith(f"layers.{index}.")
    ]
    return (*merged[:position], *others, *merged[position:])


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
