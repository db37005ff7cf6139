"""Changes of the logical shape: views where memory may stay as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from backends.emulator.api.types import Layout, MemoryConfig, ShardSpec, TensorMemoryLayout, padded
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, memory_or_default, op, require, unchanged
from backends.emulator.loops.moves import reshaped


@op("reshape")
def reshape(
    input_tensor: Tensor,
    shape: Sequence[int],
    padded_shape: Sequence[int] | None = None,
    *,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """A new logical shape; with `padded_shape` a view that hides (or shows) padding rows."""
    return _reshape("reshape", input_tensor, tuple(shape), padded_shape, memory_config)


def _reshape(
    name: str,
    x: Tensor,
    new: tuple[int, ...],
    padded_shape: Sequence[int] | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    old = x.dims
    if -1 in new:
        rest = -math.prod(new)
        new = tuple(math.prod(old) // rest if size == -1 else size for size in new)
    memory = memory_or_default(memory_config, x)
    moves = memory != x.memory_config()
    if new == old and not moves:
        return unchanged(name, x, shape=new)
    if memory_config is None and memory.is_sharded():
        memory = _reshaped_shards(memory, new, x.layout)
    if math.prod(new) == math.prod(old):

        def compute(data: torch.Tensor) -> torch.Tensor:
            return reshaped(data, (*data.shape[:2], *new))

    else:
        require(padded_shape is not None, "Invalid arguments to reshape")
        require(
            new[-1] == old[-1] and tuple(padded_shape or ()) == x.padded_shape,
            f"reshape of {list(old)} to {list(new)} in {padded_shape}: only rows of padding can "
            "be hidden or shown",
        )

        def compute(data: torch.Tensor) -> torch.Tensor:
            rows = data.reshape(*data.shape[:2], -1, old[-2], old[-1])
            more = new[-2] - old[-2]
            if more > 0:
                rows = torch.nn.functional.pad(rows, (0, 0, 0, more))
            return rows[..., : new[-2], :].reshape(*data.shape[:2], *new)

    return launch(
        name,
        [x],
        [Out(new, x.dtype, x.layout, memory)],
        compute,
        view=not moves and _is_view(old, new, x.layout),
        exact=new[-1:] == old[-1:],
        host=True,
        attributes={"shape": new},
    )


def _is_view(old: tuple[int, ...], new: tuple[int, ...], layout: Layout) -> bool:
    """Whether memory may stay as it is: rows keep their width, and tiles their rows."""
    if not old or not new or old[-1] != new[-1]:
        return False
    if layout is Layout.ROW_MAJOR:
        return True
    whole = [padded(shape, layout)[-2] for shape in (old, new)]
    rows = [shape[-2] if len(shape) > 1 else 1 for shape in (old, new)]
    hides_padding = math.prod(old) != math.prod(new)
    return rows[0] == rows[1] or rows == whole or (hides_padding and whole[0] == whole[1])


def _reshaped_shards(memory: MemoryConfig, new: tuple[int, ...], layout: Layout) -> MemoryConfig:
    spec = memory.shard_spec
    if spec is None or memory.memory_layout is not TensorMemoryLayout.WIDTH_SHARDED:
        return memory
    height = math.prod(padded(new, layout)[:-1])
    grown = ShardSpec(spec.grid, (height, spec.shape[1]), spec.orientation)
    return MemoryConfig(memory.memory_layout, memory.buffer_type, grown)


@op("unsqueeze_to_4D")
def unsqueeze_to_4D(tensor: Tensor) -> Tensor:
    missing = 4 - len(tensor.dims)
    require(missing >= 0, "Tensor rank is greater than 4")
    return _reshape("unsqueeze_to_4D", tensor, (1,) * missing + tensor.dims)


@op("experimental.view")
def view(input_tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows in memory as rows of another width; shards stay where they are, and as large."""
    x, new = input_tensor, tuple(shape)
    require(x.layout is Layout.ROW_MAJOR, "only rows are viewed as rows of another width here")
    require(math.prod(new) == math.prod(x.dims), "Invalid arguments to view: volumes differ")
    memory = x.memory_config()
    if memory.shard_spec is not None:
        spec, size = memory.shard_spec, math.prod(memory.shard_spec.shape)
        require(
            memory.memory_layout is TensorMemoryLayout.HEIGHT_SHARDED and size % new[-1] == 0,
            f"shards of {list(spec.shape)} hold no whole rows of {new[-1]}",
        )
        own = ShardSpec(spec.grid, (size // new[-1], new[-1]), spec.orientation)
        memory = MemoryConfig(memory.memory_layout, memory.buffer_type, own)

    def compute(data: torch.Tensor) -> torch.Tensor:
        return data.reshape(*data.shape[:2], *new)

    return launch(
        "experimental.view",
        [x],
        [Out(new, x.dtype, x.layout, memory)],
        compute,
        view=True,
        exact=True,
        host=True,
        attributes={"shape": new},
    )
