"""The op list of a run without running it: the real forward on the emulator's meta tensors.

Layers of equal precision issue equal ops, so one of each kind is recorded and counted as often as
it occurs. Nothing here knows the network; next: cost/price.py times the records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.device_specs import DeviceSpec
from backends.op_record import OpRecord

if TYPE_CHECKING:
    from models.config import ModelConfig
    from runtime.blueprint import Blueprint

BLOCK = 32  # positions of a cache page
GENERATED = 200  # tokens of a published run; its decode context grows by as many


@dataclass(frozen=True)
class Workload:
    """What is to be predicted; the op list depends on nothing else."""

    model: str | Path
    spec: DeviceSpec
    batch_size: int = 1  # users of one data-parallel group
    prefill_len: int = 128
    optimizations: str = "performance"
    data_parallel: int = 1
    device_sampling: bool = True
    batched_prefill: bool = False
    pad_mlp_cores: int | None = None  # hidden width padded to a multiple of this many cores
    fill_grid: bool = False  # 2D meshes decode a whole tile of users
    pad_heads: bool = False  # head width padded to a power of two
    habits: str = "own"  # whose plans, see models/plans/target.py
    generated: int = GENERATED
    images: int = 0  # in each prompt, of the most tiles; 0: text alone
    slots: int = 0  # users that a decode step always has room for; idle ones cost, too
    padded_len: int = 0  # tokens that a prompt is padded to; 0: as this repository does it

    @property
    def decode_users(self) -> int:
        """Users of the decode op list, idle slots included."""
        return max(self.batch_size, self.slots)

    @property
    def prefill_tokens(self) -> int:
        """Tokens that a prefill goes through."""
        return self.padded_len or self.prefill_len

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
    grid: tuple[int, int] | None = None  # of a chip's cores as opened; None: as the product says

    def spec(self, product: DeviceSpec) -> DeviceSpec:
        """Facts of the product as it was opened for these ops."""
        return product.from_column() if self.grid == product.column_grid else product


def record_run(workload: Workload) -> RunOps:
    """Op lists of a workload; raises ValueError for what no engine can do."""
    import backends

    if backends.select("emulator") != "emulator":
        raise AssertionError
    from models.registry import load_config

    config = load_config(workload.model, vision=workload.images > 0)
    padded = 1 << (config.head_dim - 1).bit_length()
    if workload.pad_heads and padded != config.head_dim:  # frequencies change no op
        config = replace(config, head_dim=padded, rope_scaling=None)
    plan = blueprint(workload, config)
    precision = plan.precision
    kinds = Counter(precision.layer(i) for i in range(config.num_layers))
    lists = []
    for kind, count in kinds.items():
        alike = [i for i in range(config.num_layers) if precision.layer(i) == kind]
        looking = [i for i in alike if config.vision and i in config.vision.cross_before]
        index = (looking or alike)[0]  # with a layer that looks at images in front, if one has
        lists.append((_record_layer(workload, plan, index), Alike(index, count, len(looking))))
    first = lists[0][0]
    return replace(
        first,
        decode=replace(first.decode, ops=_merge([(r.decode, alike) for r, alike in lists])),
        prefill=replace(first.prefill, ops=_merge([(r.prefill, alike) for r, alike in lists])),
    )


def blueprint(workload: Workload, config: ModelConfig) -> Blueprint:
    """What a program would load for the workload, with pages for the positions that it uses."""
    from models.kv_cache import CacheConfig
    from models.plans.target import Habits
    from runtime.blueprint import LoadOptions, draw
    from runtime.settings import Settings

    used = max(workload.prefill_len + workload.generated, workload.prefill_tokens)
    max_seq_len = min(_round_up(used, 1024), config.max_position_embeddings)
    pages = _round_up(min(used, max_seq_len), BLOCK) // BLOCK
    options = LoadOptions(
        model=str(workload.model),
        optimizations=workload.optimizations,
        max_batch_size=workload.decode_users,
        max_seq_len=max_seq_len,
        cache=CacheConfig(BLOCK, pages * workload.batch_size),
        data_parallel=workload.data_parallel,
        enable_trace=False,
        batched_prefill=workload.batched_prefill,
        fill_grid=workload.fill_grid,
        images=workload.images,
        habits=Habits(workload.habits),
    )
    settings = Settings(backend="emulator", pad_mlp_cores=workload.pad_mlp_cores)
    plan = draw(options, settings, config, workload.spec)
    plan.check_fits()
    return plan


def _record_layer(workload: Workload, plan: Blueprint, index: int) -> RunOps:
    """Op lists of a model that has only the layer `index`."""
    from backends.emulator.chip.device import MeshDevice
    from models.checkpoints import ShapeCheckpoint
    from runtime.loading import build_engine

    chunk = plan.max_prefill_chunk  # of the whole model
    one_layer = replace(plan.options, layers=range(index, index + 1), max_prefill_chunk=chunk)
    mesh = MeshDevice(plan.spec, plan.mesh_shape, "meta")
    engine = build_engine(
        replace(plan, options=one_layer, prefill_chunk=chunk),
        mesh,
        ShapeCheckpoint(plan.config),
        None,
    )
    pages = _round_up(plan.options.max_seq_len, BLOCK) // BLOCK
    found = _record_passes(engine, workload, workload.decode_users, pages)
    engine.close()
    return replace(found, mesh_shape=plan.mesh_shape, grid=plan.spec.compute_grid)


def _record_passes(engine: Any, workload: Workload, users: int, pages: int) -> RunOps:
    """Op lists of one prefill and one decode step of an engine."""
    import torch

    from backends.op_record import record_ops
    from runtime.sampling import GREEDY, device_sampling

    max_seq_len = engine.max_seq_len
    table = torch.zeros(users, pages, dtype=torch.int32)
    # users that are not prefilled together run the same ops in turn
    together = workload.batch_size if workload.batched_prefill else 1
    prompt = [0] * workload.prefill_tokens
    if workload.images:
        from runtime.images import blank_image  # what it reads prompts with takes 0.2 s to load

        prompt[: workload.images] = [engine.vision.image_token] * workload.images
        for slot in range(users):
            engine.attach(slot, prompt, [blank_image(engine.vision)] * workload.images)
    with record_ops() as prefill:
        engine.prefill([prompt] * together, slots=list(range(together)), page_table=table)
    sampling = device_sampling([GREEDY] * users) if workload.device_sampling else None
    with record_ops() as decode:
        out = engine.decode(
            torch.zeros(users, dtype=torch.int32),
            torch.full((users,), min(workload.prefill_len, max_seq_len - 1), dtype=torch.int32),
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


@dataclass(frozen=True)
class Alike:
    """Layers of one precision: which one was recorded, how many there are, how many look."""

    index: int
    count: int
    looking: int

    def times(self, record: OpRecord) -> int:
        """How often the whole model issues an op of the recorded one; 0: it is in no layer."""
        if record.scope.startswith(f"layers.{self.index}."):
            return self.count
        return self.looking if record.scope.startswith("cross_layers.") else 0


def _merge(lists: list[tuple[OpList, Alike]]) -> tuple[CountedOp, ...]:
    """One list with the layers of every kind."""
    merged: list[CountedOp] = []
    base, alike = lists[0]
    position = 0
    for op in base.ops:
        times = alike.times(op.record)
        merged.append(CountedOp(op.record, times or 1))
        if times:
            position = len(merged)
    others = [
        CountedOp(op.record, alike.times(op.record))
        for ops, alike in lists[1:]
        for op in ops.ops
        if alike.times(op.record)
    ]
    return (*merged[:position], *others, *merged[position:])


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
