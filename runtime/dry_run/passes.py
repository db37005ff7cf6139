"""Every path of a run on mock chips: prefill short, whole, chunked and together; decode; sampling.

Imported after the dry run is selected. The weights are placeholders of full size, the plans, the
engine and the traces are the real ones. Returns plain data; report.py prints it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from backends import op_record, ttnn
from backends.dry_run import DryRunError, watch
from backends.dry_run.memory import core_usage
from models.config import ModelConfig
from models.kv_cache import CacheConfig
from models.registry import load_config
from models.sharding import MAX_USERS
from runtime.blueprint import Blueprint, LoadOptions, draw
from runtime.choices import Result
from runtime.chunking import BUCKET, bucket_length, plan_chunks
from runtime.engine import Engine
from runtime.images import blank_image
from runtime.loading import load_engines
from runtime.sampling import DeviceSampling
from runtime.settings import Settings
from runtime.short_prefill import LONGEST

PHASES = ("prefill", "decode", "both")


@dataclass(frozen=True)
class CheckOptions:
    """What to check; `max_seq_len` None means the longest context that one user can have."""

    model: str
    device: str
    batch_sizes: tuple[int, ...] = (1, 32)
    max_seq_len: int | None = None
    layers: int | None = None
    phase: str = "both"
    optimizations: str = "performance"
    data_parallel: int = 1
    block_size: int = 32
    num_blocks: int | None = None
    ring: bool | None = None  # None: where the device closes them
    line_reduce: bool = False  # reduce-scatters over lines all the same
    images: int = 0  # most images of a prompt; 0: text alone


def check(options: CheckOptions) -> dict[str, Any]:
    """Run every batch size; the report's `status` is pass, fail or refused."""
    report: dict[str, Any] = {
        "status": "pass",
        "model": options.model,
        "device": options.device,
        "data_parallel": options.data_parallel,
        "optimizations": options.optimizations,
        "phase": options.phase,
        "runs": [],
    }
    try:
        config = load_config(options.model, vision=options.images > 0)
        for batch in options.batch_sizes:
            report["runs"].append(run := {"batch_size": batch, "phases": []})
            _check_batch(options, config, batch, run)
    except DryRunError as error:
        report["status"] = "fail"
        report["failure"] = {
            "op": f"ttnn.{error.op}",
            "scope": error.scope,
            "where": error.where,
            "words": error.reason,
        }
    except ValueError as error:
        report["status"], report["reason"] = "refused", str(error)
    return report


# --- what fits


def plan_cache(options: CheckOptions, plan: Blueprint) -> Blueprint:
    """Choose context and page pool: what was asked for, else the most that fits."""
    plan.with_cache(0, BUCKET).check_fits()
    block = options.block_size
    length = options.max_seq_len or plan.config.max_position_embeddings
    if options.max_seq_len is None:
        while length > BUCKET and plan.blocks_that_fit(length) * block < length:
            length //= 2
    blocks = options.num_blocks
    if blocks is None:
        one_user = -(-length // block)
        wanted = one_user * plan.options.max_batch_size
        blocks = max(one_user, min(wanted, plan.blocks_that_fit(length)))
    plan = plan.with_cache(blocks, length)
    plan.check_fits()
    return plan


# --- one batch size


def _check_batch(
    options: CheckOptions, config: ModelConfig, batch: int, run: dict[str, Any]
) -> None:
    load = LoadOptions(
        model=options.model,
        device=options.device,
        weights="placeholder",
        optimizations=options.optimizations,
        max_batch_size=batch,
        max_seq_len=options.max_seq_len or BUCKET,
        cache=CacheConfig(options.block_size, 1),
        layers=range(options.layers) if options.layers else None,
        data_parallel=options.data_parallel,
        ring=options.ring,
        images=options.images,
    )
    settings = Settings(
        backend="dry-run", device=options.device, line_reduce_scatter=options.line_reduce
    )
    plan = plan_cache(options, draw(load, settings, config))
    needs = plan.needs
    watch().memory.clear()
    with load_engines(plan.options, settings) as loaded:
        engine = loaded.engines[0]
        passes = Passes(engine, run)
        run.update(
            mesh_shape=list(engine.model.mesh.shape),
            layers=len(engine.model.layers),
            max_seq_len=engine.max_seq_len,
            max_prefill_chunk=engine.max_prefill_chunk,
            block_size=engine.block_size,
            num_blocks=engine.num_blocks,
        )
        loaded_bytes = passes.dram().now_bytes
        try:
            if options.phase != "decode":
                passes.prefill()
            if options.phase != "prefill":
                passes.decode()
            if options.phase == "both":
                passes.next_batch()
            if options.images:
                passes.look(options.phase)
        finally:
            run["dram"] = dram = _dram_report(engine, loaded_bytes, passes.dram())
            run["programs"] = engine.model.mesh.num_program_cache_entries()
            run["fits"] = _what_fits(engine, dram)
            together = BUCKET * engine.max_batch_size if engine.batched_prefill else 0
            longest = min(engine.max_prefill_chunk, bucket_length(engine.max_seq_len - 1))
            run["estimate"] = {
                "weights": needs.weights + needs.tables,
                "cache": needs.cache,
                "rest": needs.prefill_peak(max(longest, together)),
            }


def _dram_report(engine: Engine, loaded_bytes: int, mark: Any) -> dict[str, int]:
    """Bytes of one chip; weights include the rotation tables, rest is the peak beside both."""
    cache = 0
    for layer_cache in engine.model.caches:
        for tensor in (layer_cache.k, layer_cache.v):
            cache += tensor.buffer_num_pages() * tensor.buffer_aligned_page_size()
    return {
        "total": mark.banks * mark.bank_bytes,
        "weights": loaded_bytes - cache,
        "cache": cache,
        "rest": mark.peak_bytes - loaded_bytes,
        "peak": mark.peak_bytes,
    }


def _what_fits(engine: Engine, dram: dict[str, int]) -> dict[str, Any]:
    """Contexts and batches that the memory beside weights and activations would hold."""
    positions = engine.num_blocks * (engine.block_size or 0)
    room = dram["total"] - dram["weights"] - dram["rest"]
    tokens = int(room / (dram["cache"] / positions))
    limit = engine.config.max_position_embeddings
    most = {
        str(batch): min(limit, tokens // batch // BUCKET * BUCKET)
        for batch in sorted({1, engine.max_batch_size, MAX_USERS})
    }
    return {
        "cache_tokens": tokens,
        "largest_context_at_batch": most,
        "largest_batch_at_max_seq_len": min(MAX_USERS, tokens // engine.max_seq_len),
    }


class Passes:
    """Runs an engine's paths and notes what each took."""

    def __init__(self, engine: Engine, run: dict[str, Any]) -> None:
        self.engine, self.run = engine, run
        self.model = engine.model
        assert engine.block_size is not None
        self.block_size = engine.block_size
        pages = engine.pages.values.shape[1]
        # pages of one user are its own; users share the pool in turns where it is smaller
        table = torch.arange(engine.max_batch_size * pages, dtype=torch.int32)
        self.page_table = (table % engine.num_blocks).reshape(-1, pages)

    def dram(self) -> Any:
        """High-water mark of one chip's DRAM."""
        return watch().memory.look(self.model.mesh)["DRAM"]

    def prefill(self) -> None:
        """The shortest bucket, the largest whole one, chunks, the last of them, and users together.

        The chunks between run the same programs on other pages.
        """
        engine = self.engine
        limit = max(1, engine.max_seq_len - 1)
        whole = min(engine.max_prefill_chunk, limit)
        self._prefill("prefill 128", [min(BUCKET, limit)])
        if whole > BUCKET:
            self._prefill(f"prefill {whole}", [whole])
        if limit > whole:
            length = min(limit, 2 * whole)
            self._prefill(f"prefill {length} in chunks", [length])
        if limit > 2 * whole:
            start = -(-(limit - whole) // self.block_size) * self.block_size
            self._prefill(f"prefill {limit} after {start} cached", [limit], starts=[start])
        if limit > BUCKET:
            length, start = min(limit, 2 * BUCKET), BUCKET
            self._prefill(f"prefill {length} after {start} cached", [length], starts=[start])
        if engine.batched_prefill and engine.max_batch_size > 1:
            users = engine.max_batch_size
            self._prefill(f"prefill {users} x 128", [min(BUCKET, limit)] * users)

    def next_batch(self) -> None:
        """A replayed prompt after decode, and the longest where its readers had a part of L1."""
        limit = max(1, self.engine.max_seq_len - 1)
        lengths = {min(BUCKET, limit)}
        if self.model.options.prefetch:
            lengths.add(min(self.engine.max_prefill_chunk, limit))
        for length in sorted(lengths):
            self.engine.prefill([[1] * length], slots=[0], page_table=self.page_table)

    def _prefill(
        self,
        name: str,
        lengths: list[int],
        starts: list[int] | None = None,
        prompts: list[list[int]] | None = None,
    ) -> None:
        prompts = prompts or [[1] * length for length in lengths]
        slots = list(range(len(prompts)))

        def run() -> None:
            self.engine.prefill(
                prompts, slots=slots, page_table=self.page_table, start_positions=starts
            )

        chunks = plan_chunks(lengths[0], max_chunk=self.engine.max_prefill_chunk)

        def again() -> None:
            traced, self.engine.enable_trace = self.engine.enable_trace, False
            try:
                run()
            finally:
                self.engine.enable_trace = traced

        self._measured(name, run, again, passes=1 if starts else len(chunks))
        if not starts and bucket_length(lengths[0]) <= LONGEST:
            run()  # captured above: replayed now

    def look(self, phase: str) -> None:
        """Prompts with one image of 1, 2 and the most tiles, with several images; decode with one.

        The shortest prompt for each, and the longest one for the largest image.
        """
        engine: Any = self.engine
        vision = engine.vision
        most, limit = vision.max_tiles, engine.max_seq_len - 1
        cases = [[1], [2], [most]] if engine.max_images == 1 else [[1], [most] * engine.max_images]
        lengths = [min(BUCKET, limit)] * len(cases)
        if limit > BUCKET:
            cases, lengths = [*cases, cases[-1]], [*lengths, limit]
        for tiles, length in zip(cases, lengths, strict=True):
            images = [blank_image(vision, count) for count in tiles]
            # images apart from each other, so that a mask says who sees which
            prompt = [1] * length
            for number in range(len(images)):
                prompt[2 * number] = vision.image_token
            engine.attach(0, prompt, images)
            if phase != "decode":
                named = "+".join(map(str, tiles))
                self._prefill(f"prefill {length}, {named} tiles", [length], prompts=[prompt])
            if phase != "prefill" and tiles == cases[-1] and length == lengths[-1]:
                self.decode(" with images")
            engine.detach(0)

    def decode(self, what: str = "") -> None:
        """Logits to the host and tokens drawn on the device, each eager, captured and replayed."""
        for sampling in (None, _sampling()):
            on_device = sampling is not None
            name = f"{'decode and sample' if on_device else 'decode'}{what}"
            position = self.engine.max_seq_len // 2

            def step(position: int = position, sampling: DeviceSampling | None = sampling) -> None:
                users = self.engine.max_batch_size
                self.engine.decode(
                    torch.ones(users, dtype=torch.int32),
                    torch.full((users,), position, dtype=torch.int32),
                    page_table=self.page_table,
                    sampling=sampling,
                )

            def again(result: Result = Result.DRAWN if on_device else Result.LOGITS) -> None:
                self.engine._step(result)

            self._measured(name, step, again)
            for later in (1, 2, 3):  # capture, replay with rewritten inputs, replay
                step(min(position + later, self.engine.max_seq_len - 1))

    def _measured(
        self, name: str, run: Callable[[], None], again: Callable[[], None], passes: int = 1
    ) -> None:
        """Run and record; `again` repeats the work with one layer of each kind to weigh its L1."""
        mesh = self.model.mesh
        programs = mesh.num_program_cache_entries()
        began = time.perf_counter()
        with op_record.record_ops() as records:
            run()
        phase = {
            "name": name,
            "ops": len(records),
            "ops_per_layer": _ops_of_first_layer(records) // passes,
            "programs": mesh.num_program_cache_entries() - programs,
            "seconds": round(time.perf_counter() - began, 3),
        }
        with self.model.one_layer_of_each_kind(), core_usage(ttnn) as usage:
            again()
        dram = self.dram()
        dram.reach(dram.now_per_bank + usage.dram_growth)
        phase |= {"l1_peak": usage.total, "l1_tensors": usage.tensors}
        self.run["phases"].append(phase | {"dram_peak": dram.peak_bytes})


def _sampling() -> DeviceSampling:
    return DeviceSampling(
        temperature=torch.full((MAX_USERS,), 0.7),
        top_k=torch.full((MAX_USERS,), 32, dtype=torch.int32),
        top_p=torch.full((MAX_USERS,), 0.9),
        seeds=torch.arange(MAX_USERS, dtype=torch.int32),
    )


def _ops_of_first_layer(records: list[op_record.OpRecord]) -> int:
    """Ops whose scope is that of the first decoder layer met."""
    layers = [".".join(record.scope.split(".")[:2]) for record in records]
    layers = [layer for layer in layers if layer.startswith("layers.")]
    return layers.count(layers[0]) if layers else 0
