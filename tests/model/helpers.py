"""Engines of any checkpoint on any emulated device, and the measures tests judge them by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import backends
from backends.device_specs import SPECS
from models.kv_cache import CacheConfig
from runtime.generator import Generator
from runtime.requests import Request
from runtime.settings import Settings

BF16 = (
    "precision_cfg = {ff1_3: bf16, ff2: bf16, wqkv: bf16, wo: bf16, kv_cache: bf16, "
    "activation: bf16}, fidelity_cfg = {li_ff1_3: hifi4, li_ff2: hifi4, li_qkv_decode: hifi4, "
    "li_o_decode: hifi4, sdpa_decode: hifi4, li_qkv_prefill: hifi4, li_o_prefill: hifi4, "
    "sdpa_prefill: hifi4}"
)


@contextmanager
def engine_of(
    checkpoint: Any,
    device: str = "N150",
    *,
    optimizations: str = BF16,
    batch: int = 1,
    max_seq_len: int = 1024,
    block_size: int | None = 32,
    num_blocks: int = 256,
    chunk: int = 4096,
    trace: bool = True,
    batched: bool = True,
    layers: range | None = None,
    images: int = 0,
    fused: bool = True,
    ring: bool = False,
    gathers: bool = False,
) -> Iterator[Any]:
    """An engine of `checkpoint` on an emulated `device`; with `images` one that has eyes."""
    backends.select("emulator")
    from backends.mesh import open_mesh
    from models.checkpoints.weight_cache import NoCache
    from models.collectives import Links
    from models.plans.fused import opened, shard
    from models.precision import ModelPrecision
    from models.sharding import TILE
    from models.transformer import ModelOptions, Transformer
    from runtime.engine import Engine

    config, spec = checkpoint.config, SPECS[device]
    fused = fused and block_size is not None and not images
    sizes = shard(config, spec.mesh_shape, spec, fused=fused, least_users=batch)
    cores, spec = sizes.ring_cores, opened(spec, sizes)
    options = ModelOptions(
        max_batch_size=batch,
        slots=TILE if cores else None,
        ring_cores=cores,
        shared_users=sizes.shared_users,
        prefetch=cores is not None,
        max_seq_len=max_seq_len,
        cache=CacheConfig(block_size, num_blocks),
        layers=layers,
        images=images,
        links=Links(ring=ring),
        gathers=gathers,
    )
    precision = ModelPrecision.parse(optimizations, config)
    with open_mesh(device, ring=ring, from_column=spec.is_from_column) as mesh:
        model_type, engine_type = Transformer, Engine
        if images:
            from models.vision_transformer import VisionTransformer
            from runtime.image_engine import ImageEngine

            model_type, engine_type = VisionTransformer, ImageEngine
        model = model_type(mesh, spec, config, precision, checkpoint, NoCache(), options)
        engine = engine_type(
            model, max_prefill_chunk=chunk, enable_trace=trace, batched_prefill=batched
        )
        yield engine
        engine.close()


def answers(generator: Generator, requests: Sequence[Request]) -> list[list[int]]:
    """The tokens of every request, all answered together."""
    found: list[list[int]] = [[] for _ in requests]
    for step in generator.generate(requests):
        for number, token in step.tokens.items():
            found[number].append(token)
    return found


def answers_as_in_demos(
    requests: Sequence[Request], *, num_blocks: int, eos_ids: Sequence[int] = (), **options: Any
) -> list[list[int]]:
    """The same on an emulated device that is set up as demos do it; `options` of LoadOptions."""
    backends.select("emulator")
    from runtime.blueprint import LoadOptions
    from runtime.image_generator import ImageGenerator
    from runtime.loading import load_engines

    asked = LoadOptions(cache=CacheConfig(32, num_blocks), **options)
    kind = ImageGenerator if asked.images else Generator
    with load_engines(asked, Settings(backend="emulator", device=asked.device)) as loaded:
        return answers(kind(loaded.engines, eos_ids=eos_ids), requests)


def random_pages(engine: Any, seed: int = 0) -> torch.Tensor | None:
    """A page table that deals the blocks out in random order; None for a dense cache."""
    if engine.block_size is None:
        return None
    per_user = engine.num_blocks // engine.max_batch_size
    per_user = min(per_user, -(-engine.max_seq_len // engine.block_size))
    order = torch.randperm(engine.num_blocks, generator=torch.Generator().manual_seed(seed))
    taken = order[: engine.max_batch_size * per_user]
    return taken.reshape(engine.max_batch_size, per_user).to(torch.int32)


def random_prompt(vocab: int, length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (length,), generator=generator).tolist()


def pcc(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson correlation of two tensors' values."""
    return torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1].item()


def run_forced(
    engine: Any, prompt: Sequence[int], forced: Sequence[int], pages: torch.Tensor | None
) -> torch.Tensor:
    """Logits [1 + len(forced), V] of slot 0: after the prompt, then after each forced token."""
    logits = [engine.prefill([prompt], slots=[0], page_table=pages)[0]]
    batch = engine.max_batch_size
    for step, token in enumerate(forced):
        tokens = torch.zeros(batch, dtype=torch.int32)
        positions = torch.full((batch,), -1, dtype=torch.int32)
        tokens[0], positions[0] = token, len(prompt) + step
        logits.append(engine.decode(tokens, positions, page_table=pages)[0])
    return torch.stack(logits)


def hf_logits(reference: Any, tokens: Sequence[int], last: int) -> torch.Tensor:
    """The reference's logits of the `last` positions."""
    with torch.inference_mode():
        ids = torch.tensor([list(tokens)])
        return reference(ids, use_cache=False, logits_to_keep=last).logits[0].float()
