"""Our models for Tenstorrent's own vLLM plugin: the class that its loader and runner call.

That plugin opens the mesh, owns the page tables and samples on the host; it hands every call the
cache it asked `allocate_kv_cache` for, which is the engine's own. Register it under "TT" and the
architecture's name, e.g. TTLlamaForCausalLM. No vLLM is imported here. One row of chips only: on a
grid, a user's pages lie in a column that this interface does not name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import backends
from backends.device_specs import SPECS, DeviceSpec
from runtime.paging import NO_BLOCK
from runtime.requests import in_turns
from runtime.settings import Settings
from serving.engines import warm_up
from serving.model_files import DEFAULT_FOLDER, checkpoint_of
from serving.options import ServeOptions, group_batch, load_options

if TYPE_CHECKING:
    from runtime.blueprint import LoadOptions
    from runtime.engine import Engine

DEFAULT_LENGTH = 131_072
BLOCK = 32  # tokens, until allocate_kv_cache says which


class TTModel:
    """One model on a mesh that somebody else opened; its engines are built with their cache."""

    model_capabilities = {
        "supports_prefix_caching": True,
        "supports_async_decode": False,
        "supports_sample_on_device": False,
    }

    def __init__(self, mesh: Any, options: LoadOptions, settings: Settings) -> None:
        self.mesh, self.options, self.settings = mesh, options, settings
        self.engines: list[Engine] = []

    @classmethod
    def initialize_vllm_model(
        cls,
        hf_config: Any,
        mesh_device: Any,
        max_batch_size: int,
        max_seq_len: int = DEFAULT_LENGTH,
        tt_data_parallel: int = 1,
        optimizations: str | None = None,
        **_: Any,
    ) -> TTModel:
        """What is to be loaded, on which mesh; loading waits for the size of the cache."""
        settings = Settings.from_env()
        spec = spec_of_mesh(mesh_device, settings)
        if min(spec.mesh_shape) > 1:
            raise ValueError(
                f"{spec.name} is a grid of chips, which this interface cannot drive: "
                "use the platform plugin of serving/"
            )
        backends.select(settings.backend, spec.name)
        wanted = ServeOptions(
            data_parallel=tt_data_parallel, optimizations=optimizations or "performance"
        )
        options = load_options(
            wanted,
            replace(settings, device=spec.name),
            model=checkpoint_of(hf_config._name_or_path, hf_config),
            weights="instruct",
            users=max_batch_size,
            max_seq_len=max_seq_len,
            block_size=BLOCK,
        )
        return cls(mesh_device, options, settings)

    @classmethod
    def get_max_tokens_all_users(
        cls,
        model_name: str = "default",
        num_devices: int = 1,
        tt_data_parallel: int = 1,
        max_model_len: int = DEFAULT_LENGTH,
        max_num_seqs: int = 32,
        **_: Any,
    ) -> int:
        """Tokens of all users of a group together: what they may ask for, or what fits."""
        from models.checkpoints.open import locate
        from models.registry import load_config
        from runtime.blueprint import draw

        settings = Settings.from_env()
        config = load_config(locate(model_name).path)
        options = load_options(
            ServeOptions(data_parallel=tt_data_parallel),
            settings,
            model=model_name,
            weights="instruct",
            users=max_num_seqs,
            max_seq_len=min(max_model_len, config.max_position_embeddings),
            block_size=BLOCK,
        )
        fit = draw(options, settings, config).blocks_that_fit(options.max_seq_len)
        return min(fit * BLOCK, group_batch(max_num_seqs, tt_data_parallel) * max_model_len)

    @property
    def cache_path(self) -> Path:
        """Where converted weights may be kept."""
        return self.settings.cache_path or DEFAULT_FOLDER

    def allocate_kv_cache(
        self, kv_cache_shape: Sequence[int], dtype: Any, num_layers: int
    ) -> list[list[list[Any]]]:
        """Load the model with a cache of [pages, heads, page, width]; keys and values by layer.

        The precision's own format is kept: `dtype` is what vLLM supposes.
        """
        from backends.mesh import split_mesh
        from models.checkpoints.open import open_checkpoint
        from models.kv_cache import CacheConfig
        from runtime.blueprint import draw
        from runtime.loading import build_engine, weight_cache

        num_blocks, _, block_size, _ = kv_cache_shape
        options = replace(self.options, cache=CacheConfig(block_size, num_blocks))
        checkpoint = open_checkpoint(options.model)
        plan = draw(options, self.settings, checkpoint.config)
        plan.check_fits()
        assert num_layers == plan.config.num_layers, "a model is served whole"
        cache = weight_cache(plan, self.settings, checkpoint)
        try:
            parts = split_mesh(self.mesh, options.data_parallel)
            self.engines = [build_engine(plan, part, checkpoint, cache) for part in parts]
        finally:
            cache.close()
            checkpoint.close()
        return [[[layer.k, layer.v] for layer in e.model.caches] for e in self.engines]

    def warmup_model_prefill(self, **_: Any) -> None:
        """Compile; called once without traces and once with them."""
        for engine in self.engines:
            warm_up(engine)

    def warmup_model_decode(self, **_: Any) -> None:
        """Done with prefill, which a decode needs before it."""

    # --- steps

    def prefill_forward(
        self,
        tokens: torch.Tensor,
        page_table: torch.Tensor,
        kv_cache: Any = None,
        prompt_lens: Sequence[int] | torch.Tensor = (),
        start_pos: Sequence[int] | torch.Tensor | None = None,
        empty_slots: Sequence[int] | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Logits [n, 1, vocab] of each prompt's last token.

        tokens [n, longest], of which a row's first `prompt_lens` count; start_pos: tokens of each
        prompt that are in the cache; empty_slots: where each prompt will decode.
        """
        lengths = [int(n) for n in prompt_lens]
        starts = [0] * len(lengths) if start_pos is None else [int(n) for n in start_pos]
        slots = list(range(len(lengths))) if empty_slots is None else [int(s) for s in empty_slots]
        logits = torch.empty(len(lengths), self.engines[0].vocab_size)
        parts, sent = [], []
        for index, engine in enumerate(self.engines):
            per_engine = engine.max_batch_size
            rows = [i for i, slot in enumerate(slots) if slot // per_engine == index]
            if not rows:
                continue
            table = self._table(engine)
            for i in rows:
                self._fill(table[slots[i] % per_engine], page_table[i], lengths[i], engine)
            block = engine.block_size or BLOCK
            steps = engine.prefilling(
                [tokens[i, : lengths[i]].tolist() for i in rows],
                slots=[slots[i] % per_engine for i in rows],
                page_table=table,
                start_positions=[starts[i] // block * block for i in rows],
            )
            parts.append(rows)
            sent.append(steps)
        for rows, found in zip(parts, in_turns(sent), strict=True):
            logits[rows] = found
        return logits.unsqueeze(1)

    def decode_forward(
        self,
        tokens: torch.Tensor,
        page_table: torch.Tensor,
        kv_cache: Any = None,
        start_pos: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Logits [B, 1, vocab] of every slot; start_pos [B] is -1 where a slot is idle."""
        assert start_pos is not None
        found = []
        positions = torch.as_tensor(start_pos).reshape(-1).to(torch.int32)
        for index, engine in enumerate(self.engines):
            rows = slice(index * engine.max_batch_size, (index + 1) * engine.max_batch_size)
            own, table = positions[rows], self._table(engine)
            for slot, position in enumerate(own.tolist()):
                if position >= 0:
                    self._fill(table[slot], page_table[rows][slot], position + 1, engine)
            ids = torch.as_tensor(tokens[rows]).reshape(-1).to(torch.int32)
            found.append(engine.decode(ids, own, page_table=table))
        return torch.cat(found).unsqueeze(1)

    def read_decode_output(self, tt_out: Any, async_read: bool = False, **_: Any) -> Any:
        """A step's output is on the host already; there is nothing to wait for."""
        return (tt_out, []) if async_read else tt_out

    def process_decode_output_host(self, tt_out: Any, is_tokens: bool = False, **_: Any) -> Any:
        """As decode_forward gave it."""
        return tt_out[0] if isinstance(tt_out, tuple) else tt_out

    @staticmethod
    def _table(engine: Engine) -> torch.Tensor:
        width = -(-engine.max_seq_len // (engine.block_size or BLOCK))
        return torch.full((engine.max_batch_size, width), NO_BLOCK, dtype=torch.int32)

    @staticmethod
    def _fill(row: torch.Tensor, pages: torch.Tensor, length: int, engine: Engine) -> None:
        """A user's pages; vLLM writes page 0 where there are none, which must not be written to."""
        count = -(-length // (engine.block_size or BLOCK))
        row[:count] = torch.as_tensor(pages)[:count].to(torch.int32)


def spec_of_mesh(mesh: Any, settings: Settings) -> DeviceSpec:
    """The product that a mesh is all of: the one named by MESH_DEVICE, else by its shape."""
    if settings.device is not None:
        return SPECS[settings.device]
    shape, name = tuple(mesh.shape), str(mesh.arch()).lower()
    for spec in SPECS.values():
        if spec.mesh_shape == shape and spec.arch.split("_")[0] in name:
            return spec
    shapes = ", ".join(f"{s.name} {s.mesh_shape[0]}x{s.mesh_shape[1]}" for s in SPECS.values())
    raise ValueError(f"no product has a mesh of {shape[0]}x{shape[1]} chips: known are {shapes}")
