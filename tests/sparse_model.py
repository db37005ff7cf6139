"""A full-size checkpoint of zeros in sparse files: real names, shapes and bytes, no disk space.

`python -m tests.sparse_model --model Llama-3.1-8B --out DIR` for timing loaders and converters.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from pathlib import Path

import torch

from models.checkpoints import PlaceholderCheckpoint
from models.checkpoints.export import export_tensors
from models.checkpoints.names import HF
from models.registry import load_config, model_params_dir


def write_sparse(model: str, directory: str | Path, *, shard_bytes: int = 5 * 10**9) -> Path:
    """Sharded safetensors of a known model, bfloat16, every weight zero."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    facts = model_params_dir(model) / "config.json"
    (directory / "config.json").write_text(facts.read_text())
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in export_tensors(
        PlaceholderCheckpoint(load_config(model)), HF, half_order=False
    ):
        if sum(other.nbytes for other in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / file, {name: tuple(t.shape) for name, t in shard.items()})
        weight_map |= dict.fromkeys(shard, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Llama-3.1-8B")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    print(write_sparse(arguments.model, arguments.out))


if __name__ == "__main__":
    main()
