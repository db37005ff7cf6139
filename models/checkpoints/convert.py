"""Fills a model's weight cache ahead of time, in bounded memory, and says how fast that went.

`python -m models.checkpoints.convert --model DIR --device N150 --report`. The model's own code
walks its weights (models/transformer.py); here nothing is kept that has been written.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import backends
from backends.command import run
from models.checkpoints.base import Checkpoint, get_rows
from models.checkpoints.open import Location, locate, open_checkpoint, resolve
from models.numbers import argument
from models.outputs import output_folder

WORKERS = 3


@dataclass(frozen=True)
class Report:
    """What a conversion did; GB are 10^9 bytes."""

    model: str
    device: str
    backend: str
    optimizations: str
    cache: str
    weights: int  # placed, found in the cache or not
    converted: int  # of these, not found
    checkpoint_gb: float  # read, as dequantised
    cache_gb: float  # written
    seconds: float
    processor_seconds: float
    checkpoint_gb_per_s: float
    peak_memory_gib: float


class CountingCheckpoint:
    """Counts the bytes a model reads from its checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.config, self.fingerprint = checkpoint.config, checkpoint.fingerprint
        self.names, self.close = checkpoint.names, checkpoint.close
        self.reads: list[int] = []

    def get(self, name: str) -> Any:
        """One tensor."""
        tensor = self._checkpoint.get(name)
        self.reads.append(tensor.nbytes)
        return tensor

    def get_rows(self, name: str, start: int, stop: int) -> Any:
        """Some rows of one matrix."""
        rows = get_rows(self._checkpoint, name, start, stop)
        self.reads.append(rows.nbytes)
        return rows


class WriteOnly:
    """A weight cache's face that converts and stores, and puts nothing on a device.

    Three weights are at work at a time: while one is written, others are rounded. More would be
    faster on many cores, and would break the promise of bounded memory.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._workers = ThreadPoolExecutor(WORKERS)
        self._at_work: set[Future[int]] = set()
        self._table: Future[int] | None = None
        self.weights = self.converted = self.bytes_written = 0

    def tensor(self, key: str, *, build: Callable[[], Any], **_: Any) -> None:
        """Make sure that the cache holds a weight."""
        self.weights += 1
        if self._cache.find(key) is not None:
            return
        self.converted += 1
        # the table is as large as many others, and is copied whole
        most = WORKERS - 1 if self._table in self._at_work else WORKERS
        if len(self._at_work) >= most:
            self._collect(*wait(self._at_work, return_when=FIRST_COMPLETED))
        future = self._workers.submit(self._convert, key, build)
        self._at_work.add(future)
        if key.startswith("embed"):
            self._table = future

    def finish(self) -> None:
        """Until the last weight is on disk."""
        self._collect(*wait(self._at_work))

    def _collect(self, done: set[Future[int]], at_work: set[Future[int]]) -> None:
        self._at_work = at_work
        self.bytes_written += sum(future.result() for future in done)

    def _convert(self, key: str, build: Callable[[], Any]) -> int:
        size: int | None = self._cache.store(key, build())
        if size is None:
            raise ValueError(f"cannot write {self._cache.directory}: is the disk full?")
        return size


def convert(
    model: str | Path,
    device: str,
    *,
    optimizations: str = "performance",
    cache_path: Path | None = None,
    num_layers: int | None = None,
    pad_mlp_cores: int | None = None,
) -> Report:
    """Convert every weight of `model` for `device` into its cache; what is there already stays."""
    from backends.device_specs import SPECS
    from backends.mesh import open_mesh
    from models.checkpoints.cache_place import open_weight_cache
    from models.plans.fused import shard
    from models.precision import ModelPrecision

    location: Location = locate(model)
    checkpoint = CountingCheckpoint(open_checkpoint(location.path, num_layers=num_layers))
    precision = ModelPrecision.parse(optimizations, checkpoint.config)
    start, processor_start = time.perf_counter(), time.process_time()
    with open_mesh(device) as mesh:
        rows, cols = tuple(mesh.shape)
        sizes = shard(checkpoint.config, (rows, cols), SPECS[device], pad_mlp_cores)
        with open_weight_cache(
            checkpoint,
            location,
            device,
            (rows, cols),
            padding=sizes.padding,
            tt_cache_path=cache_path,
        ) as cache:
            writer = WriteOnly(cache)
            _walk(mesh, device, checkpoint, precision, writer, sizes)
            writer.finish()
            directory = cache.directory
    checkpoint.close()
    seconds = time.perf_counter() - start
    return Report(
        model=str(model),
        device=device,
        backend=str(backends.selected()),
        optimizations=optimizations,
        cache=str(directory),
        weights=writer.weights,
        converted=writer.converted,
        checkpoint_gb=sum(checkpoint.reads) / 1e9,
        cache_gb=writer.bytes_written / 1e9,
        seconds=seconds,
        processor_seconds=time.process_time() - processor_start,
        checkpoint_gb_per_s=sum(checkpoint.reads) / 1e9 / seconds,
        peak_memory_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    )


def _walk(
    mesh: Any,
    device: str,
    checkpoint: Any,
    precision: Any,
    writer: WriteOnly,
    sizes: Any,
) -> None:
    """Build the model with the smallest KV cache there is: only its weights are of interest."""
    from backends.device_specs import SPECS
    from models.kv_cache import CacheConfig
    from models.sharding import TILE
    from models.transformer import ModelOptions, Transformer

    options = ModelOptions(
        slots=TILE if sizes.ring_cores else None,
        max_seq_len=32,
        cache=CacheConfig(block_size=32, num_blocks=1),
        pad_mlp_cores=sizes.pad_mlp_cores,
        ring_cores=sizes.ring_cores,
    )
    Transformer(mesh, SPECS[device], checkpoint.config, precision, checkpoint, writer, options)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m models.checkpoints.convert"
    )
    parser.add_argument("--model", default="default", help="directory, .gguf, hub name or default")
    parser.add_argument("--device", default="N150")
    parser.add_argument("--optimizations", default="performance", help="preset or grammar string")
    parser.add_argument("--cache", type=output_folder, help="where, as TT_CACHE_PATH")
    parser.add_argument("--pad_mlp_cores", type=argument("pad_mlp_cores"), help="as PAD_MLP_CORES")
    parser.add_argument(
        "--layers", type=argument("num_layers"), help="how many layers, from the first"
    )
    parser.add_argument("--report", action="store_true", help="print figures as JSON")
    arguments = parser.parse_args()
    if not arguments.model:
        raise ValueError("--model is empty: give a directory, .gguf, hub name or default")
    torch.set_num_threads(1)  # the workers are the parallelism
    report = convert(
        resolve(arguments.model),
        arguments.device,
        optimizations=arguments.optimizations,
        cache_path=arguments.cache,
        num_layers=arguments.layers,
        pad_mlp_cores=arguments.pad_mlp_cores,
    )
    if arguments.report:
        print(json.dumps(asdict(report), indent=2))
    else:
        print(
            f"{report.converted} of {report.weights} weights converted in {report.seconds:.1f} s "
            f"into {report.cache}"
        )


if __name__ == "__main__":
    run(main, "models.checkpoints.convert")
