"""How every op runs: compute, round to the output format, account, record, capture.

An op states its result (`compute`, pure torch on the mesh-batched data), its output specs and its
cost; the rest happens here. Meta devices skip the arithmetic, a trace under capture keeps it for
replay. Ops register by their name below ttnn. Next: ops/matmul.py is the op to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from typing import Any, NoReturn

import torch

from backends import op_record
from backends.emulator.formats import to_format
from backends.emulator.tensor import Tensor, stored_bytes
from backends.emulator.types import (
    DRAM_MEMORY_CONFIG,
    BufferType,
    CoreCoord,
    DataType,
    Layout,
    MemoryConfig,
    ProgramConfig,
    WormholeComputeKernelConfig,
)
from backends.op_record import Cost, OpRecord

REGISTRY: dict[str, Callable[..., Any]] = {}


def op(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as ttnn.<name>."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        REGISTRY[name] = function
        return function

    return register


@dataclass(frozen=True)
class Out:
    """Spec of one output, per chip."""

    shape: tuple[int, ...]
    dtype: DataType
    layout: Layout = Layout.TILE
    memory: MemoryConfig = DRAM_MEMORY_CONFIG


def fatal(message: str) -> NoReturn:
    """Refuse as TT-NN does."""
    raise RuntimeError(f"TT_FATAL: {message}")


def require(condition: bool, message: str) -> None:
    """Refuse unless the condition holds; the message is built by the caller, so keep it cheap."""
    if not condition:
        fatal(message)


def finish(data: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """A result as its output format holds it."""
    if dtype.is_block:
        return to_format(data, dtype)
    return data if data.dtype is dtype.carrier else data.to(dtype.carrier)


class Step:
    """One recorded op of a trace."""

    __slots__ = ("compute", "inputs", "outputs")

    def __init__(
        self, compute: Callable[..., Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        self.compute, self.inputs, self.outputs = compute, tuple(inputs), tuple(outputs)

    def run(self) -> None:
        results = self.compute(*[tensor.data for tensor in self.inputs])
        if results is None:  # the op wrote into its operand
            return
        outputs = self.outputs
        if len(outputs) == 1:
            outputs[0].data = finish(results, outputs[0].dtype)
        else:
            for tensor, data in zip(outputs, results, strict=True):
                tensor.data = finish(data, tensor.dtype)


def launch(
    name: str,
    inputs: Sequence[Tensor],
    outs: Sequence[Out],
    compute: Callable[..., Any],
    *,
    into: Tensor | None = None,
    attributes: Mapping[str, Any] | None = None,
    flops: int = 0,
    link_bytes: int = 0,
    dram_bytes: int | None = None,
) -> Any:
    """Run one op; returns one tensor, or a tuple where it has several outputs.

    compute(*data) gets the inputs' torch tensors, mesh dims leading, and returns one result per
    output. `into` is an existing tensor that takes the result (None: compute wrote it in place).
    `dram_bytes` replaces the default: all that lies in DRAM is read or written once.
    """
    device = device_of(name, inputs)
    if into is not None:
        outputs = [into]
    else:
        outputs = [Tensor(None, o.shape, o.dtype, o.layout, o.memory, device) for o in outs]
        for tensor in outputs:
            device.allocate(tensor)
    if not device.is_meta:
        step = Step(compute, inputs, outputs)
        if device.capturing is not None:
            device.capturing.append(step)
        else:
            step.run()
    if op_record.recording():
        _record(name, inputs, outputs, attributes or {}, flops, link_bytes, dram_bytes)
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def device_of(name: str, inputs: Sequence[Tensor]) -> Any:
    """The one mesh all inputs live on."""
    device = inputs[0].device()
    if device is None:
        fatal(f"{name}: Operands to {name} need to be on device!")
    for tensor in inputs[1:]:
        if tensor.device() is not device:
            fatal(f"{name}: Operands to {name} need to be on the same device!")
    for tensor in inputs:
        if not tensor.is_allocated():
            fatal(f"{name}: an operand's buffer is not allocated (it was deallocated)")
    return device


def _record(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    attributes: Mapping[str, Any],
    flops: int,
    link_bytes: int,
    dram_bytes: int | None,
) -> None:
    touched = [*inputs, *outputs]
    in_dram = sum(t.buffer_bytes() for t in touched if t.in_dram())
    in_l1 = sum(t.buffer_bytes() for t in touched if not t.in_dram())
    cost = Cost(flops, in_dram if dram_bytes is None else dram_bytes, in_l1, link_bytes)
    op_record.append(
        OpRecord(
            name,
            tuple(t.spec() for t in inputs),
            tuple(t.spec() for t in outputs),
            describe(attributes),
            op_record.current_scope(),
            cost,
        )
    )


def describe(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as scalars and strings: configs are spread into their fields."""
    found: dict[str, Any] = {}
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, WormholeComputeKernelConfig):
            found["math_fidelity"] = value.math_fidelity.name
            found["math_approx_mode"] = value.math_approx_mode
            found["fp32_dest_acc_en"] = value.fp32_dest_acc_en
            found["packer_l1_acc"] = value.packer_l1_acc
        elif isinstance(value, ProgramConfig) and is_dataclass(value):
            found[key] = type(value).__name__
            found.update({k: _plain(v) for k, v in asdict(value).items() if v is not None})
        else:
            found[key] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, CoreCoord):
        return f"{value.x}x{value.y}"
    if isinstance(value, Mapping):
        return "x".join(str(v) for v in value.values())
    if isinstance(value, list | tuple):
        return "x".join(str(_plain(v)) for v in value)
    return value


def bytes_of(shape: Sequence[int], dtype: DataType, layout: Layout = Layout.TILE) -> int:
    """Bytes the device stores for a tensor of one chip."""
    return stored_bytes(tuple(shape), dtype, layout)


def memory_or_default(memory: MemoryConfig | None, like: Tensor) -> MemoryConfig:
    """The asked-for memory; without one, the input's own (DRAM where it is sharded in DRAM)."""
    if memory is not None:
        return memory
    own = like.memory_config()
    return DRAM_MEMORY_CONFIG if own.buffer_type is BufferType.DRAM else own


def volume(shape: Sequence[int]) -> int:
    """Elements of one chip's part."""
    return math.prod(shape)
