"""How every op runs: compute, round to the output format, account, record, capture.

An op states its result (`compute`, pure torch on the mesh-batched data), its output specs and its
cost; the rest happens here. Meta devices skip the arithmetic, a trace under capture keeps it for
replay. Ops register by their name below ttnn. Next: ops/matmul.py is the op to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch

from backends import op_record
from backends.emulator.api.attributes import describe
from backends.emulator.api.types import (
    DRAM_MEMORY_CONFIG,
    DataType,
    Layout,
    MemoryConfig,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.numerics.formats import finish
from backends.op_record import Cost, OpRecord, operand_bytes

REGISTRY: dict[str, Callable[..., Any]] = {}


def op(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as ttnn.<name>."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        REGISTRY[name] = function
        return function

    return register


class Out(NamedTuple):
    """Spec of one output, per chip."""

    shape: tuple[int, ...]
    dtype: DataType
    layout: Layout = Layout.TILE
    memory: MemoryConfig = DRAM_MEMORY_CONFIG


def fatal(message: str) -> NoReturn:
    """Refuse as TT-NN does."""
    raise RuntimeError(f"TT_FATAL: {message}")


def require(condition: Any, message: str) -> None:
    """Refuse unless the condition holds; the message is built by the caller, so keep it cheap."""
    if not condition:
        fatal(message)


def same(x: torch.Tensor) -> torch.Tensor:
    """The compute of a move: values stay as they are, so replaying it costs nothing."""
    return x


def launch(
    name: str,
    inputs: Sequence[Tensor],
    outs: Sequence[Out],
    compute: Callable[..., Any],
    *,
    into: Tensor | tuple[Tensor, ...] | None = None,
    updates: Tensor | None = None,
    view: bool = False,
    exact: bool = False,
    host: bool = False,
    attributes: Mapping[str, Any] | None = None,
    flops: int = 0,
    link_bytes: int = 0,
    dram_bytes: int | None = None,
    cached_bytes: int = 0,
) -> Any:
    """Run one op; returns one tensor, or a tuple where it has several outputs.

    compute(*data) gets the inputs' torch tensors, mesh dims leading, and returns one result per
    output. `into` is an existing tensor that takes the result (None: compute wrote it in place),
    or several of them. `updates` is an operand that takes compute's last result, after the outputs.
    A `view` shares the first input's buffer and moves no bytes. `exact`: results need no rounding.
    `host`: host tensors are taken too. The last four are its Cost; without
    `dram_bytes`, all that lies in DRAM is read or written once.
    """
    if host and inputs[0]._device is None:
        outputs = [Tensor(None, *out) for out in outs]
        _run(compute, inputs, outputs, exact)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
    device = device_of(name, inputs)
    if into is not None:
        outputs = list(into) if isinstance(into, tuple) else [into]
    else:
        outputs = [Tensor(None, *out, device) for out in outs]
        for tensor in outputs:
            if view:
                tensor._allocation = inputs[0]._allocation
            else:
                device.allocate(tensor)
    if not device.is_meta:
        changed = outputs if updates is None else [*outputs, updates]
        if device.capturing is not None:
            device.capturing.add(compute, inputs, changed, exact=exact, is_written=into is not None)
        else:
            _run(compute, inputs, changed, exact)
    if op_record.recording():
        cost = Cost()
        if not view:
            operands = [tensor.spec() for tensor in (*inputs, *outputs)]
            if dram_bytes is None:
                dram_bytes = operand_bytes(operands, "DRAM")
            in_l1 = operand_bytes(operands, "L1")
            cost = Cost(flops, dram_bytes, cached_bytes, in_l1, link_bytes)
        record(name, inputs, outputs, attributes, cost)
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def unchanged(name: str, tensor: Tensor, **attributes: Any) -> Tensor:
    """An op that has nothing to do and gives its input back."""
    if op_record.recording():
        record(name, [tensor], [tensor], attributes, Cost())
    return tensor


def device_of(name: str, inputs: Sequence[Tensor]) -> Any:
    """The one mesh all inputs live on."""
    device = inputs[0]._device
    for tensor in inputs:
        if tensor._device is None or tensor._device is not device:
            where = "on device" if tensor._device is None else "on the same device"
            fatal(f"{name}: Operands to {name} need to be {where}!")
        if tensor._allocation is not None and not tensor._allocation.alive:
            fatal(f"{name}: Operands to {name} need to be allocated in buffers on device!")
    return device


def _run(
    compute: Callable[..., Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor], exact: bool
) -> None:
    results = compute(*[tensor.data for tensor in inputs])
    if results is None:  # the op wrote into its operand
        return
    if isinstance(results, torch.Tensor):
        results = (results,)
    exact = exact or is_alias(compute, inputs[0], outputs[0])
    for target, data in zip(outputs, results, strict=True):
        target.data = data if exact else finish(data, target.dtype)


def is_alias(compute: Callable[..., Any], source: Tensor, target: Tensor) -> bool:
    """Whether a move leaves the values as they are, so that both tensors can share them."""
    if compute is not same:
        return False
    kept = source.dtype.carrier is target.dtype.carrier and not target.dtype.is_block
    return kept or source.dtype is target.dtype


def record(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    attributes: Mapping[str, Any] | None,
    cost: Cost,
) -> None:
    """Tell whoever listens what ran."""
    op_record.append(
        OpRecord(
            name,
            tuple(tensor.spec() for tensor in inputs),
            tuple(tensor.spec() for tensor in outputs),
            describe(attributes or {}),
            op_record.current_scope(),
            cost,
        )
    )


def memory_or_default(memory: MemoryConfig | None, like: Tensor) -> MemoryConfig:
    """The asked-for memory; without one, the input's own."""
    return like.memory_config() if memory is None else memory


def volume(shape: Sequence[int]) -> int:
    """Elements of one chip's part."""
    return math.prod(shape)
