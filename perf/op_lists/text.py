"""An op list as text, one line per op: short enough to review, exact enough to show changes."""

from __future__ import annotations

from backends.op_record import OpRecord, TensorSpec
from perf.op_lists.record import OpList, RunOps

SHOWN = ("math_fidelity", "in0_block_w", "per_core_M", "per_core_N",
         "compute_with_storage_grid_size", "num_devices", "num_links", "topology")  # fmt: skip
FORMATS = {"bfloat16": "bf16", "bfloat8_b": "bfp8", "bfloat4_b": "bfp4", "float32": "f32"}


def text_of_tensor(tensor: TensorSpec) -> str:
    """Format, shape, place and shard."""
    shape = "x".join(map(str, tensor.shape))
    where = tensor.buffer if tensor.layout == "TILE" else f"{tensor.buffer}/rows"
    shard = "" if tensor.shard is None else f"/{tensor.shard[0]}x{tensor.shard[1]}"
    return f"{FORMATS.get(tensor.dtype, tensor.dtype)}[{shape}]{where}{shard}"


def text_of_op(record: OpRecord, count: int = 1) -> str:
    """How often, where in the model, what, from and to which tensors, and what it costs by."""
    scope = ".".join("*" if part.isdigit() else part for part in record.scope.split("."))
    inputs = " ".join(map(text_of_tensor, record.inputs))
    outputs = " ".join(map(text_of_tensor, record.outputs))
    settings = " ".join(f"{k}={record.attributes[k]}" for k in SHOWN if k in record.attributes)
    return f"{count:>3} {scope} {record.name}: {inputs} -> {outputs} {settings}".rstrip()


def text_of_list(ops: OpList) -> str:
    """All ops in order."""
    return "\n".join(text_of_op(op.record, op.count) for op in ops.ops)


def text_of_run(run: RunOps) -> str:
    """Decode and prefill."""
    return f"# decode\n{text_of_list(run.decode)}\n# prefill\n{text_of_list(run.prefill)}\n"
