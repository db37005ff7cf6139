"""What a plan is made for: one decoder layer's sizes and precision on one device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from backends import ttnn
from backends.device_specs import DeviceSpec
from models.plans.matmul import Kernels, dtype_of
from models.precision import (
    FIDELITY_SETTINGS,
    Fidelity,
    LayerPrecision,
    OpGroup,
    Precision,
    TensorGroup,
)
from models.sharding import Sharding


class Phase(Enum):
    """Prefill takes whole prompts; decode one token of every user."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class Target:
    """Everything a plan may depend on; equal targets give equal plans."""

    spec: DeviceSpec
    arch: Any
    sharding: Sharding
    precision: LayerPrecision
    batch: int  # decode slots of the whole mesh

    @property
    def users(self) -> int:
        """Decode slots one chip attends for."""
        return self.sharding.local_users(self.batch)

    def kernel(self, group: OpGroup) -> Any:
        """Compute kernel config the precision settings choose for an op group."""
        return Kernels(self.arch)[self.precision.op(group)]

    def wide_accumulator(self, group: OpGroup) -> bool:
        """Whether the op group accumulates in float32."""
        return FIDELITY_SETTINGS[self.precision.op(group)].fp32_dest_acc

    def weight_dtype(self, group: TensorGroup) -> Any:
        return dtype_of(self.precision.tensor(group))

    def activation_dtype(self, preferred: Any) -> Any:
        """The chosen activation format; `mixed` leaves every op its own preference."""
        chosen = self.precision.tensor(TensorGroup.ACTIVATION)
        return preferred if chosen is Precision.MIXED else dtype_of(chosen)

    @property
    def head_precision(self) -> Precision:
        """Format of the output projection: bfloat16 where attention asks for it, else bfp8."""
        wqkv = self.precision.tensor(TensorGroup.WQKV)
        return Precision.BF16 if wqkv is Precision.BF16 else Precision.BFP8

    @property
    def head_kernel(self) -> Any:
        """The output projection follows the decode projections where those are bfloat16."""
        if self.head_precision is Precision.BF16:
            return self.kernel(OpGroup.LI_QKV_DECODE)
        return Kernels(self.arch)[Fidelity.HIFI2_FP16]

    @property
    def norm_kernel(self) -> Any:
        """Norms always multiply at full fidelity: they cost nothing and feed everything."""
        return ttnn.init_device_compute_kernel_config(
            self.arch,
            math_fidelity=ttnn.MathFidelity.HiFi4,
            math_approx_mode=False,
            fp32_dest_acc_en=True,
            packer_l1_acc=False,
        )
