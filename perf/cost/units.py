"""What every price is made of: tiles, bytes, cycles, and the state that a record does not say.

Next: compute.py, links.py and moves.py price kinds of ops with these; price.py chooses among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from backends.device_specs import DeviceSpec
from backends.op_record import OpRecord, TensorSpec
from perf.cost.constants import Constants
from perf.cost.software import Software

TILE_BYTES = {
    "bfloat16": 2048, "bfloat8_b": 1088, "bfloat4_b": 576, "float32": 4096,
    "uint32": 4096, "int32": 4096, "uint16": 2048, "uint8": 1024,
}  # fmt: skip
# what the Galaxy's own software folds into the ops beside it
FOLDED = frozenset(
    {
        "to_memory_config", "matmul", "reshape", "add", "rms_norm_pre_all_gather",
        "experimental.nlp_create_qkv_heads_decode", "experimental.nlp_concat_heads_decode",
    }
)  # fmt: skip
# neighbours of one name that it runs as one op
PAIRED = frozenset(
    {
        "reduce_scatter", "experimental.rotary_embedding_llama", "experimental.paged_update_cache",
    }
)  # fmt: skip
COLLECTIVES = frozenset({"all_gather", "reduce_scatter", "all_reduce"})


@dataclass(frozen=True)
class State:
    """What a record does not say: where it runs, and how far the users have come."""

    spec: DeviceSpec
    constants: Constants
    software: Software
    context: int = 0  # positions a decode step attends to
    active_users: int = 1  # of the decode slots of one data-parallel group
    is_grid: bool = False  # the group is a 2D mesh
    isolated: bool = False  # an op timed by itself, in a loop
    prefill: bool = False

    @property
    def folds(self) -> bool:
        """Whether decode ops are folded into their neighbours."""
        return self.software.fused and not self.prefill


def tiles(shape: tuple[int, ...]) -> int:
    """32 x 32 tiles of a padded shape."""
    rows = shape[-2] if len(shape) > 1 else 1
    lead = math.prod(shape[:-2]) if len(shape) > 2 else 1
    return lead * -(-rows // 32) * -(-shape[-1] // 32)


def stored_bytes(tensor: TensorSpec) -> int:
    """Bytes of one chip's part."""
    if tensor.layout == "TILE":
        return tiles(tensor.padded_shape) * TILE_BYTES[tensor.dtype]
    return math.prod(tensor.shape) * TILE_BYTES[tensor.dtype] // 1024


def cycles_us(cycles: float, spec: DeviceSpec) -> float:
    """Microseconds that a number of cycles takes."""
    return cycles / (spec.clock_ghz * 1000)


def bytes_us(num_bytes: float, gbps: float) -> float:
    """Microseconds that moving a number of bytes takes."""
    return num_bytes / (gbps * 1000)


def overlapped(*parts: float) -> float:
    """Time of parts that run side by side but share buffers: between their maximum and sum."""
    return math.sqrt(sum(part * part for part in parts))


def grid_cores(record: OpRecord, spec: DeviceSpec) -> tuple[int, int]:
    """Cores (columns, rows) of the program config, cut to what the chip has."""
    columns, rows = spec.compute_grid
    text = record.attributes.get("compute_with_storage_grid_size")
    if text:
        x, y = (int(part) for part in str(text).split("x"))
        return min(x, columns), min(y, rows)
    return min(8, columns), min(8, rows)


def is_view(record: OpRecord) -> bool:
    """A reshape that only renames dimensions, or a move to where it is, launches nothing."""
    if not record.inputs or not record.outputs:
        return False
    before, after = record.inputs[0], record.outputs[0]
    if record.name == "to_memory_config":
        return before == after
    if record.name not in ("reshape", "unsqueeze_to_4D"):
        return False
    if before.layout != "TILE":
        return True
    same_tiles = tiles(before.padded_shape) == tiles(after.padded_shape)
    return same_tiles and before.padded_shape[-1] == after.padded_shape[-1]
