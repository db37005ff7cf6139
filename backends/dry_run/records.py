"""Op records from real tensors, spelled as the emulator spells them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backends.op_record import OpRecord, TensorSpec

# Fields of TT-NN's config objects that say how the device works; the rest is bookkeeping.
_KERNEL_FIELDS = ("math_fidelity", "math_approx_mode", "fp32_dest_acc_en", "packer_l1_acc")

_IN_THE_OUTPUT = ("dtype", "layout", "memory_config")


def tensor_spec(tensor: Any) -> TensorSpec:
    """Placement of one tensor per chip."""
    memory = tensor.memory_config()
    shard = memory.shard_spec
    on_host = tensor.storage_type().name == "HOST"
    return TensorSpec(
        tuple(tensor.shape),
        tuple(tensor.padded_shape),
        tensor.dtype.name.lower(),
        tensor.layout.name,
        "HOST" if on_host else memory.buffer_type.name,
        memory.memory_layout.name,
        None if shard is None else tuple(shard.shape),
        "" if shard is None else str(shard.grid).strip("{}"),
    )


def tensors_in(values: Any, tensor_type: type) -> Iterator[Any]:
    """Every tensor among arguments or results, lists included."""
    if isinstance(values, tensor_type):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value, tensor_type)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value, tensor_type)


def describe_inputs(tensors: Iterator[Any]) -> str:
    """Placement of tensors in a few words."""
    specs = [tensor_spec(tensor) for tensor in tensors]
    return ", ".join(
        f"{spec.dtype} {list(spec.shape)} {spec.memory_layout} in {spec.buffer}" for spec in specs
    )


def record(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    result: Any,
    scope: str,
    tensor_type: type,
) -> OpRecord:
    """The record of one finished call."""
    attributes: dict[str, Any] = {}
    for key, value in kwargs.items():
        if (
            value is None
            or key in _IN_THE_OUTPUT
            or next(tensors_in(value, tensor_type), None) is not None
        ):
            continue
        _describe(key, value, attributes)
    return OpRecord(
        name,
        tuple(tensor_spec(t) for t in tensors_in((tuple(args), dict(kwargs)), tensor_type)),
        tuple(tensor_spec(t) for t in tensors_in(result, tensor_type)),
        attributes,
        scope,
    )


def _describe(key: str, value: Any, attributes: dict[str, Any]) -> None:
    if hasattr(value, "math_fidelity"):
        attributes.update({field: _plain(getattr(value, field)) for field in _KERNEL_FIELDS})
    elif type(value).__name__.endswith("ProgramConfig"):
        attributes[key] = type(value).__name__
        for field in dir(value):
            if field.startswith("_") or callable(getattr(value, field)):
                continue
            inner = getattr(value, field)
            if inner is not None:
                attributes[field] = _plain(inner)
    else:
        attributes[key] = _plain(value)


def _plain(value: Any) -> Any:
    """Scalars as they are, enums by name, grids and lists as 8x4."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return "x".join(str(_plain(item)) for item in value)
    if hasattr(value, "name"):
        return value.name
    if hasattr(value, "x") and hasattr(value, "y"):
        return f"{value.x}x{value.y}"
    return str(value)
