"""Host tensors on their way to the mesh and back: where each input of a forward pass lives.

Tokens are the same on every chip; on a 2D mesh positions and page tables are dealt to the column
that owns the user, unless columns share them. Buffers of decode live as long as the engine, so that
a trace can read them.
"""

from __future__ import annotations

from typing import Any

import torch

from backends import ttnn
from models.sharding import Sharding


class InputPlacer:
    """Makes device tensors of host integers and rewrites them in place."""

    def __init__(self, mesh: Any, sharding: Sharding) -> None:
        self.mesh, self.sharding = mesh, sharding
        self.replicate = ttnn.ReplicateTensorToMesh(mesh)

    def _mapper(self, user_dim: int | None) -> Any:
        axis = self.sharding.mesh_axes["users"]
        if user_dim is None or axis is None:
            return self.replicate
        dims: list[int | None] = [None, None]
        dims[axis] = user_dim
        return ttnn.ShardTensor2dMesh(
            self.mesh, dims=tuple(dims), mesh_shape=(self.sharding.rows, self.sharding.cols)
        )

    def host(
        self, values: torch.Tensor, dtype: Any, user_dim: int | None = None, *, layout: Any = None
    ) -> Any:
        """Host tensor laid out for the mesh; `user_dim` is the dim that columns split."""
        return ttnn.from_torch(
            values,
            dtype=dtype,
            layout=layout or ttnn.ROW_MAJOR_LAYOUT,
            mesh_mapper=self._mapper(user_dim),
        )

    def device(
        self, values: torch.Tensor, dtype: Any, user_dim: int | None = None, *, layout: Any = None
    ) -> Any:
        """Device tensor in DRAM, row-major unless told otherwise."""
        return ttnn.from_torch(
            values,
            dtype=dtype,
            layout=layout or ttnn.ROW_MAJOR_LAYOUT,
            device=self.mesh,
            memory_config=ttnn.DRAM_MEMORY_CONFIG,
            mesh_mapper=self._mapper(user_dim),
        )

    def buffer(
        self, values: torch.Tensor, dtype: Any, user_dim: int | None = None, *, layout: Any = None
    ) -> Buffer:
        """A device tensor that can be rewritten."""
        return Buffer(self, values, dtype, user_dim, layout)

    def read_vocab(self, logits_11BV: Any) -> torch.Tensor:
        """Logits of all chips' shares side by side, float32 [B, vocab_size]."""
        parts = ttnn.get_device_tensors(logits_11BV)
        stride = self.sharding.cols if self.sharding.is_2d else 1
        shares = [ttnn.to_torch(parts[i]) for i in range(0, len(parts), stride)]
        whole = torch.cat(shares, dim=-1) if len(shares) > 1 else shares[0]
        return whole[0, 0, :, : self.sharding.config.vocab_size].float()


class Buffer:
    """A device tensor and the values it is known to hold, so that equal input is not sent again."""

    def __init__(
        self, placer: InputPlacer, values: torch.Tensor, dtype: Any, user_dim: int | None,
        layout: Any = None,
    ) -> None:  # fmt: skip
        self.placer, self.dtype, self.user_dim = placer, dtype, user_dim
        self.values, self.layout = values.clone(), layout
        self.tensor = placer.device(values, dtype, user_dim, layout=layout)

    def write(self, values: torch.Tensor) -> None:
        """Send `values` unless the device holds them already."""
        if torch.equal(values, self.values):
            return
        host = self.placer.host(values, self.dtype, self.user_dim, layout=self.layout)
        ttnn.copy_host_to_device_tensor(host, self.tensor)
        self.values = values.clone()

    def expect(self, values: torch.Tensor) -> None:
        """Note what the device itself has written."""
        self.values = values.clone()

    def rewrite(self) -> None:
        """Send the known values again, after a pass whose writes do not count."""
        host = self.placer.host(self.values, self.dtype, self.user_dim, layout=self.layout)
        ttnn.copy_host_to_device_tensor(host, self.tensor)
