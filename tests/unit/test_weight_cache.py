"""A warm weight cache reads no checkpoint, and nothing can make it serve a wrong weight."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backends import ttnn
from models.checkpoints import RandomCheckpoint, cache_place, locate, weight_cache
from models.checkpoints.cache_place import cache_directory, cache_fingerprint, open_weight_cache
from models.checkpoints.open import Location
from models.checkpoints.weight_cache import NoCache, WeightCache, checksum, sample_digest
from tests.tiny_models import tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    """One emulated chip."""
    device = ttnn.open_mesh_device(ttnn.MeshShape(1, 1))
    yield device
    ttnn.close_mesh_device(device)


def builder(seed: int = 0, size: int = 64) -> Callable[[], Any]:
    """A weight that can be built again and again."""

    def build() -> Any:
        values = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(seed))
        return ttnn.from_torch(values, dtype=ttnn.bfloat8_b, layout=ttnn.TILE_LAYOUT)

    return build


def never() -> Any:
    """A builder that must not be called."""
    raise AssertionError("a warm cache built a weight")


def values(cache: WeightCache | NoCache, mesh: Any, key: str, build: Callable[[], Any]) -> Any:
    """The weight's numbers as they come back from the device."""
    tensor = cache.tensor(key, build=build, put=lambda host: ttnn.to_device(host, mesh))
    return ttnn.to_torch(tensor)


def test_a_warm_cache_gives_the_built_weight_without_building_it(tmp_path: Path, mesh: Any) -> None:
    built = values(NoCache(), mesh, "w", builder())
    with WeightCache(tmp_path, "f") as cold:
        assert torch.equal(values(cold, mesh, "w", builder()), built)
    with WeightCache(tmp_path, "f") as warm:
        assert torch.equal(values(warm, mesh, "w", never), built)
        assert (warm.hits, warm.misses) == (1, 0)
    assert sorted(file.name for file in (tmp_path / "f").iterdir()) == [
        ".in-use",
        "w.json",
        "w.seen",
        "w.tensorbin",
    ]


def test_another_fingerprint_shares_nothing(tmp_path: Path, mesh: Any) -> None:
    values(WeightCache(tmp_path, "one"), mesh, "w", builder(1))
    other = values(WeightCache(tmp_path, "two"), mesh, "w", builder(2))
    assert torch.equal(other, values(NoCache(), mesh, "w", builder(2)))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda d: _cut(d / "w.tensorbin"),
    "one bit": lambda d: _flip(d / "w.tensorbin"),
    "empty record": lambda d: (d / "w.json").write_text(""),
    "record of another format": lambda d: (d / "w.json").write_text('{"format": 0}'),
    "no record": lambda d: (d / "w.json").unlink(),
    "no tensor": lambda d: (d / "w.tensorbin").unlink(),
    "garbage with a true record": lambda d: _replace_by_garbage(d),
}


def _replace_by_garbage(directory: Path) -> None:
    path = directory / "w.tensorbin"
    path.write_bytes(b"no tensor at all" * 100)
    record = {"format": 2, "size": path.stat().st_size, "samples": sample_digest(path)}
    record["crc32"] = checksum(path)
    (directory / "w.json").write_text(str(record).replace("'", '"'))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_built_again(tmp_path: Path, mesh: Any, damage: str) -> None:
    built = values(WeightCache(tmp_path, "f"), mesh, "w", builder())
    DAMAGE[damage](tmp_path / "f")
    assert torch.equal(values(WeightCache(tmp_path, "f"), mesh, "w", builder()), built)
    assert torch.equal(values(WeightCache(tmp_path, "f"), mesh, "w", never), built)


def test_a_change_between_the_samples_is_noticed_once_a_boot_and_when_the_file_changed(
    tmp_path: Path, mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = builder(size=512)
    built = values(WeightCache(tmp_path, "f"), mesh, "w", build)
    values(WeightCache(tmp_path, "f"), mesh, "w", never)  # read whole once: now known to be good
    path = tmp_path / "f" / "w.tensorbin"
    before, data = path.stat(), bytearray(path.read_bytes())
    samples = sample_digest(path)
    data[10_000] ^= 1
    path.write_bytes(data)
    assert sample_digest(path) == samples
    assert torch.equal(values(WeightCache(tmp_path, "f"), mesh, "w", build), built)
    values(WeightCache(tmp_path, "f"), mesh, "w", never)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a failing disk would do it
    monkeypatch.setattr(weight_cache, "_boot", lambda: "the next boot")
    assert torch.equal(values(WeightCache(tmp_path, "f"), mesh, "w", build), built)


def test_a_failing_build_leaves_no_entry(tmp_path: Path, mesh: Any) -> None:
    def fail() -> Any:
        raise ValueError("the weight holds NaN")

    with WeightCache(tmp_path, "f") as cache, pytest.raises(ValueError, match="NaN"):
        values(cache, mesh, "w", fail)
    assert not list((tmp_path / "f").glob("w*"))


@pytest.mark.parametrize("link", ["directory", "fingerprint", "tensor", "record"])
def test_a_symbolic_link_in_the_cache_is_refused(tmp_path: Path, mesh: Any, link: str) -> None:
    base, outside = tmp_path / "cache", tmp_path / "outside"
    values(WeightCache(base, "f"), mesh, "w", builder())
    moved = {
        "directory": base,
        "fingerprint": base / "f",
        "tensor": base / "f" / "w.tensorbin",
        "record": base / "f" / "w.json",
    }[link]
    moved.rename(outside)
    moved.symlink_to(outside)
    before = outside.read_bytes() if outside.is_file() else None
    with pytest.raises(ValueError, match="is a symbolic link") as error:
        values(WeightCache(base, "f"), mesh, "w", builder(1))
    assert "\n" not in str(error.value)
    assert before is None or outside.read_bytes() == before


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("No space: the wheel")]
)
def test_a_full_disk_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, mesh: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(path: Path, _: Any) -> None:
        Path(path).write_bytes(b"half")
        raise error

    warnings: list[str] = []
    monkeypatch.setattr(weight_cache.logger, "warning", warnings.append)
    monkeypatch.setattr(ttnn, "dump_tensor", full)
    with WeightCache(tmp_path, "f") as cache:
        for key in ("w", "v"):
            expected = values(NoCache(), mesh, key, builder())
            assert torch.equal(values(cache, mesh, key, builder()), expected)
    assert len(warnings) == 1
    assert "No space" in warnings[0]
    assert [file.name for file in (tmp_path / "f").iterdir()] == [".in-use"]


def test_a_place_that_cannot_be_written_is_a_warning(
    tmp_path: Path, mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    warnings: list[str] = []
    monkeypatch.setattr(weight_cache.logger, "warning", warnings.append)
    cache = WeightCache(tmp_path / "file", "f")
    values(cache, mesh, "w", builder())
    assert len(warnings) == 1


WRITER = """
import sys, torch
from backends import ttnn
from models.checkpoints.weight_cache import WeightCache
slow = sys.argv[2] == "slow"
if slow:
    dump = ttnn.dump_tensor
    def endless(path, tensor):
        dump(path, tensor)
        print("half written", flush=True)
        import time; time.sleep(60)
    ttnn.dump_tensor = endless
mesh = ttnn.open_mesh_device(ttnn.MeshShape(1, 1))
with WeightCache(sys.argv[1], "f") as cache:
    for index in range(40):
        def build():
            values = torch.full((1, 1, 64, 64), float(index))
            return ttnn.from_torch(values, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT)
        tensor = cache.tensor(f"w{index}", build=build, put=lambda host: ttnn.to_device(host, mesh))
        assert (ttnn.to_torch(tensor) == index).all()
"""


def start_writer(directory: Path, mode: str = "quick") -> subprocess.Popen[str]:
    """Another process that fills the cache."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), mode],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_may_fill_one_cache_at_once(tmp_path: Path, mesh: Any) -> None:
    writers = [start_writer(tmp_path) for _ in range(2)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    with WeightCache(tmp_path, "f") as cache:
        for index in range(40):
            assert (values(cache, mesh, f"w{index}", never) == index).all()
    assert not list(tmp_path.rglob(".making-*"))


def test_a_writer_killed_halfway_leaves_nothing_that_is_served(tmp_path: Path, mesh: Any) -> None:
    writer = start_writer(tmp_path, "slow")
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half written\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    (abandoned,) = tmp_path.rglob(".making-*")
    with WeightCache(tmp_path, "f") as cache:
        assert cache.find("w0") is None
        assert torch.equal(
            values(cache, mesh, "w0", builder(7)), values(NoCache(), mesh, "w0", builder(7))
        )
    assert not abandoned.exists()


def test_the_cache_lies_where_the_readme_says(tmp_path: Path) -> None:
    directory = locate(tmp_path)
    hub = Location(tmp_path / "snapshot", "org/model", is_path=False)
    root = REPOSITORY / "model_cache"
    assert cache_directory(directory, "N150", tt_cache_path="/x") == Path("/x/N150")
    assert cache_directory(directory, "T3K") == tmp_path / "T3K"
    assert cache_directory(hub, "TG") == root / "org" / "model" / "TG"
    assert cache_directory(locate("default"), "N150") == root / "SmolLM2-135M-Instruct" / "N150"


def test_the_fingerprint_names_mesh_checkpoint_code_and_padding() -> None:
    one, two = (RandomCheckpoint(tiny_config("llama"), seed) for seed in (0, 1))
    prints = {
        cache_fingerprint(one, (1, 1), None),
        cache_fingerprint(two, (1, 1), None),
        cache_fingerprint(one, (1, 2), None),
        cache_fingerprint(one, (1, 1), 16),
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    "file",
    ["loops/rows.c", "loops/vectors.h", "ops/host.py", "numerics/formats.py", "ops/files.py"],
)
def test_a_change_to_any_code_that_decides_bytes_changes_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    for folder in ("models", "backends/emulator"):
        shutil.copytree(cache_place.ROOT / folder, tmp_path / folder)
    checkpoint = RandomCheckpoint(tiny_config("llama"))
    monkeypatch.setattr(cache_place, "ROOT", tmp_path)
    before = cache_fingerprint(checkpoint, (1, 1), None)
    code = tmp_path / "backends/emulator" / file
    code.write_text(code.read_text() + "\n")
    assert cache_fingerprint(checkpoint, (1, 1), None) != before


def test_caches_of_older_code_are_removed_unless_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = RandomCheckpoint(tiny_config("llama"))
    where = Location(tmp_path, str(tmp_path), is_path=True)

    def opened(code: str, padding: int | None = None) -> WeightCache:
        monkeypatch.setattr("models.checkpoints.cache_place._code_digest", lambda: code)
        return open_weight_cache(checkpoint, where, "N150", (1, 1), padding=padding)

    padded = opened("older", 16)
    padded.close()
    first, second = opened("first"), opened("second")
    assert first.directory.exists()  # still open
    first.close()
    third = opened("third")
    assert not first.directory.exists()
    assert second.directory.exists()
    assert padded.directory.exists()  # no older code, but another arrangement
    second.close()
    third.close()
