"""Joins Meta's tensor-parallel shards into files of a few layers each, layers_A-B.pth.

Streams: one tensor is in memory at a time, whatever the file's size. Used by
scripts/repack_weights_70b.py and repack_weights_90b.py; meta.py reads the result.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from loguru import logger
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

from backends.scratch import scratch_folder
from models.checkpoints.file_checkpoint import MAPPED_BYTES_LIMIT
from models.checkpoints.meta import MetaFiles, load_pth, stored_shapes
from models.checkpoints.names import META, normalised
from models.config import ModelConfig
from models.config_readers import config_from_meta
from models.numbers import argument
from models.outputs import output_folder


def repack(
    in_dir: str | Path, out_dir: str | Path, *, chunk_size: int = 10, num_layers: int | None = None
) -> list[Path]:
    """Write the model of `in_dir` as layers_A-B.pth of `chunk_size` layers into `out_dir`.

    Tensors outside the layers, a vision tower's among them, go into the first file; a layer that
    looks at images goes with the text layer it runs in front of.
    """
    source, target = Path(in_dir), Path(out_dir)
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}: it must be at least 1, and 10 is usual")
    config = _config(source)
    if num_layers not in (None, config.num_layers):
        raise ValueError(f"{source} has {config.num_layers} layers, not {num_layers}")
    wanted = stored_shapes(config)
    meta = MetaFiles(source, wanted, original=True)
    kept = [name for name in meta.shapes if normalised(META, name) in wanted]
    if len(kept) < len(meta.shapes):
        logger.info(
            f"leaving out {len(meta.shapes) - len(kept)} tensors that params.json has no place for"
        )
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for first in range(0, config.num_layers, chunk_size):
        last = min(first + chunk_size, config.num_layers) - 1
        names = [name for name in kept if first <= _layer(name, config) <= last]
        path = target / f"layers_{first}-{last}.pth"
        with scratch_folder(target) as scratch:
            _write(scratch / path.name, names, meta)
            os.replace(scratch / path.name, path)
        written.append(path)
    if source.resolve() != target.resolve():
        for name in ("params.json", "tokenizer.model"):
            if (source / name).is_file():
                shutil.copy(source / name, target / name)
    return written


def _config(source: Path) -> ModelConfig:
    """The model's config, its image side included where it has one."""
    config = config_from_meta(source)
    params = json.loads((source / "params.json").read_text(encoding="utf-8"))
    return config_from_meta(source, vision=True) if "vision_chunk_size" in params else config


def _layer(name: str, config: ModelConfig) -> int:
    """The text layer whose file a tensor goes into."""
    match = re.match(r"(cross_attention_)?layers\.(\d+)\.", normalised(META, name))
    if match is None:
        return 0
    if match[1] is None:
        return int(match[2])
    assert config.vision is not None
    return config.vision.cross_before[int(match[2])]


def _write(unfinished: Path, names: list[str], meta: MetaFiles) -> None:
    """Reserve the file with torch's own layout, then fill it through a shared map."""
    dtypes = {name: meta.dtype(name) for name in names}
    with FakeTensorMode():
        shells = {name: torch.empty(meta.shapes[name], dtype=dtypes[name]) for name in names}
    with _no_checksums(), torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(shells, unfinished)
    mapped: Mapping[str, torch.Tensor] = {}
    room = 0
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        for name in tqdm(names, desc=unfinished.name, unit="tensor", disable=None):
            if room <= 0:  # mapped pages count as resident: let them go now and then
                mapped, room = {}, MAPPED_BYTES_LIMIT
                meta.close()
                mapped = load_pth(unfinished)
            mapped[name].copy_(meta.read(name))
            room -= mapped[name].nbytes


@contextmanager
def _no_checksums() -> Iterator[None]:
    """The data comes later, so the zip's checksums would be wrong; torch.load ignores them."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def main(description: str, name_part: str) -> None:
    """Command line of both scripts; `name_part` is what the folder of this model is called."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("in_dir", type=Path, help="folder with consolidated.NN.pth")
    parser.add_argument("out_dir", type=output_folder, help="may be the same folder")
    parser.add_argument(
        "chunk_size", type=argument("num_layers"), nargs="?", default=10, help="layers a file (10)"
    )
    parser.add_argument(
        "-n", "--num_layers", type=argument("num_layers"), help="checked against params.json"
    )
    arguments = parser.parse_args()
    if name_part not in arguments.out_dir.resolve().name:
        logger.info(f"keep {name_part!r} in the folder's name if other tools go by it")
    files = repack(
        arguments.in_dir,
        arguments.out_dir,
        chunk_size=arguments.chunk_size,
        num_layers=arguments.num_layers,
    )
    print(f"wrote {len(files)} files; export LLAMA_DIR={arguments.out_dir}")
