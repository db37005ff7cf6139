"""How a layer's matrices lie in DRAM, and which of them lie there twice.

Decode streams a matrix from all DRAM banks at once, each with a slice of its columns. Where prefill
cannot multiply it as it lies there, a copy for prefill alone lies beside it, page by page. The
copy is made of the same converted numbers: a weight cache keeps them once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import ttnn
from backends.device_specs import DeviceSpec
from models.plans.matmul import is_narrow
from models.plans.target import Target
from models.precision import TensorGroup

MATRICES = frozenset({TensorGroup.WQKV, TensorGroup.WO, TensorGroup.FF1_FF3, TensorGroup.FF2})


@dataclass(frozen=True)
class Stored:
    """Format of a matrix, its place in DRAM, and the place of a copy for prefill, if it has one."""

    dtype: Any
    memory: Any
    prefill: Any = None


def copied(spec: DeviceSpec) -> frozenset[TensorGroup]:
    """The matrices of a layer that lie in DRAM twice.

    All, where the chip has fewer columns of cores than products of weights dealt to the banks use.
    """
    return MATRICES if is_narrow(spec) else frozenset()


def stored(target: Target, group: TensorGroup, memory: Any, *, gathers: bool = False) -> Stored:
    """How a matrix of a layer is stored that decode reads from `memory`.

    `gathers`: prefill would gather its input beside its product (gathered.py).
    """
    twice = group in copied(target.spec) or (gathers and target.gathers)
    return Stored(target.weight_dtype(group), memory, ttnn.DRAM_MEMORY_CONFIG if twice else None)
