"""Weights of a decode step read ahead of time: a core beside each DRAM bank feeds its neighbours.

The readers run on a part of the chip of their own, beside all other ops of the step, through one
buffer in L1 that products take their weights from. The buffer is in the way of prefill, so it
exists from the first decode step after a prefill to the next prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from backends import ttnn
from backends.device_specs import RECEIVERS, DeviceSpec
from backends.mesh import SplitCores
from backends.op_record import scope
from models.plans.fused import ring_cores, sharded, single_cores
from models.plans.matmul import TILE_BYTES, dtype_of
from models.sharding import TILE, round_up

MOST_BYTES = 672 * 1088  # on each receiver: what steps of all models leave of their L1; more only
# for a matrix that takes more


class Prefetcher:
    """Streams the weights of decoder `layers`, which have to be alike."""

    def __init__(self, mesh: Any, spec: DeviceSpec, layers: Sequence[Any]) -> None:
        self.mesh, self.name = mesh, f"{layers[0].name}.weights"
        self.layers = [_streamed(layer) for layer in layers]
        readers, rest = single_cores(spec)
        self.parts = SplitCores(mesh, [rest, readers])
        self.mapping = receivers_of(spec)
        addresses = torch.tensor([[w.buffer_address() for layer in self.layers for w in layer]])
        room = _room(mesh, ring_cores(spec))
        self.addresses = ttnn.from_torch(
            addresses.repeat(len(spec.dram_readers), 1).to(torch.int32),
            dtype=ttnn.uint32,
            layout=ttnn.ROW_MAJOR_LAYOUT,
            device=mesh,
            memory_config=sharded(readers, addresses.shape[1], rows=1, by_height=True),
            mesh_mapper=ttnn.ReplicateTensorToMesh(mesh),
        )
        ttnn.deallocate(room)
        self.size = _ahead(self.layers[0], RECEIVERS * len(spec.dram_readers))
        self.buffer: Any = None

    def ready(self) -> None:
        """Before decode steps: part the chip, and make the buffer at the place it always has."""
        if self.buffer is None:
            self.parts.load()
            self.buffer = ttnn.create_global_circular_buffer(self.mesh, self.mapping, self.size)

    def stop(self) -> None:
        """Before a prefill, which has the whole chip."""
        if self.buffer is not None:
            self.buffer = None
            self.parts.clear()

    def start(self) -> None:
        """Begin to read all layers' weights, while the step goes on."""
        with scope(self.name):
            ttnn.dram_prefetcher(
                [*self.layers[0], self.addresses],
                num_layers=len(self.layers),
                global_cb=self.buffer,
            )


def _ahead(weights: Sequence[Any], ring: int) -> int:
    """Bytes of L1 on each of `ring` receivers for a layer's `weights`.

    To read further ahead gains nothing, since a layer takes several times as long as reading it.
    The largest matrix has to fit, whose depth cores of the ring share in whole tiles.
    """
    tile_bytes = {dtype_of(precision): size for precision, size in TILE_BYTES.items()}
    whole = largest = 0
    for weight in weights:
        rows, columns = weight.memory_config().shard_spec.shape
        share = columns // TILE // RECEIVERS * tile_bytes[weight.dtype]
        whole += rows // TILE * share
        largest = max(largest, round_up(rows // TILE, ring) * share)
    return min(whole, max(MOST_BYTES, largest))


def _room(mesh: Any, cores: Any) -> Any:
    """2 KiB of L1 that are to stay free, held while the addresses are placed.

    Collectives keep small buffers for good. Without a gap for them they may lie below a tensor that
    soon goes, and cut L1 in two: with 80 layers the next norm had no room.
    """
    shape = [1, 1, TILE, TILE * cores.num_cores()]
    return ttnn.empty(shape, ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh, sharded(cores, TILE))


def _streamed(layer: Any) -> tuple[Any, ...]:
    """A layer's weights in the order in which a step uses them."""
    attention, mlp = layer.attention, layer.mlp
    matrices = attention.w_qkv, attention.w_o, mlp.w_gate, mlp.w_up, mlp.w_down
    return tuple(matrix.decode for matrix in matrices)


def receivers_of(spec: DeviceSpec) -> list[tuple[Any, Any]]:
    """Receivers of each reader. Programs that use the buffer want it on every core they may use,
    so one more core is said to send to all that have no other part.
    """
    pairs = [
        (ttnn.CoreCoord(*core), ttnn.CoreRangeSet([part]))
        for core, part in zip(spec.dram_readers, ring_cores(spec).ranges(), strict=True)
    ]
    used = set(spec.dram_readers) | {(x + step, y) for x, y in spec.dram_readers for step in (1, 2)}
    columns, rows = spec.compute_grid
    idle = [(x, y) for y in range(rows) for x in range(columns) if (x, y) not in used]
    others = [ttnn.CoreRange(ttnn.CoreCoord(*c), ttnn.CoreCoord(*c)) for c in idle[1:]]
    return [*pairs, (ttnn.CoreCoord(*idle[0]), ttnn.CoreRangeSet(others))]
