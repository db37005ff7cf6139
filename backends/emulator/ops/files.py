"""Host tensors in files: values as carried, a few words about them, no code."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from backends.emulator.device import MeshDevice
from backends.emulator.launch import op, require
from backends.emulator.ops.host import to_device
from backends.emulator.tensor import Tensor
from backends.emulator.types import DataType, Layout


@op("dump_tensor")
def dump_tensor(file_name: str | Path, tensor: Tensor) -> None:
    """Write a host tensor to one file."""
    require(tensor.data is not None, "a tensor without values cannot be written")
    assert tensor.data is not None
    # dims from slowest to fastest in memory: transposed weights stay as matmul wants them
    order = sorted(range(tensor.data.dim()), key=lambda dim: -tensor.data.stride(dim))
    spec = {"dtype": tensor.dtype.name, "layout": tensor.layout.name, "order": order}
    data = tensor.data.permute(order).contiguous()
    save_file({"data": data}, str(file_name), metadata={"tensor": json.dumps(spec)})


@op("load_tensor")
def load_tensor(file_name: str | Path, *, device: MeshDevice | None = None) -> Tensor:
    """Map a file written by dump_tensor; nothing is read until it is used."""
    with safe_open(str(file_name), framework="pt") as file:
        spec = json.loads(file.metadata()["tensor"])
        data = file.get_tensor("data")
    data = data.permute([spec["order"].index(dim) for dim in range(data.dim())])
    tensor = Tensor(data, tuple(data.shape[2:]), DataType[spec["dtype"]], Layout[spec["layout"]])
    return tensor if device is None else to_device(tensor, device)
