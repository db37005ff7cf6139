"""What the dry run puts on disk, and that it is nowhere else."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends.device_specs import SPECS
from backends.dry_run import overlay, toolchain
from backends.dry_run.descriptors import DESCRIPTORS
from backends.dry_run.worker import ROOT


@pytest.fixture(scope="module")
def wheel_root() -> Path:
    spec = importlib.util.find_spec("ttnn")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _contents(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("device", SPECS)
def test_a_cluster_has_the_chips_of_its_product_and_every_cable_has_two_ends(device: str) -> None:
    found = json.loads(json.dumps(DESCRIPTORS[device]()))
    assert len(found["arch"]) == SPECS[device].num_chips
    assert set(found["arch"].values()) == {SPECS[device].arch}
    ends = [(end["chip"], end["chan"]) for link in found["ethernet_connections"] for end in link]
    assert len(ends) == len(set(ends)), "a channel is plugged in twice"
    on_boards = [chip for board in found["boards"] for chip in board[2]["chips"]]
    assert sorted(on_boards) == list(range(SPECS[device].num_chips))


BOTH_WAYS = """
import backends
from backends.dry_run import load
load("TG")
backends.select("dry-run", "TG")
from backends.mesh import open_mesh
for from_column in (False, True):
    with open_mesh("TG", from_column=from_column) as mesh:
        grid = mesh.compute_with_storage_grid_size()
        memory = backends.ttnn.get_memory_view(mesh, backends.ttnn.BufferType.L1)
        nearest = mesh.get_optimal_dram_bank_to_logical_worker_assignment(backends.ttnn.NOC.NOC_0)
        print(grid.x, grid.y, memory.num_banks, *((core.x, core.y) for core in nearest))
"""


def test_a_mock_galaxy_has_the_cores_that_its_way_of_dispatch_leaves() -> None:
    command = [sys.executable, "-c", BOTH_WAYS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    spec = SPECS["TG"]
    for line, facts in zip(run.stdout.splitlines()[-2:], (spec, spec.from_column()), strict=True):
        assert line.startswith(f"{facts.compute_grid[0]} {facts.compute_grid[1]} {facts.num_cores}")
    readers = " ".join(map(str, spec.column_readers))
    assert line.endswith(readers), "products on a ring look for their weights there"


def test_two_processes_make_one_overlay_and_the_wheel_is_only_read(
    wheel_root: Path, tmp_path: Path
) -> None:
    before = _contents(wheel_root / "tt_metal")
    target = tmp_path / "overlay"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: overlay.make_overlay(target, wheel_root), range(8)))
    assert set(made) == {target}
    assert [path.name for path in tmp_path.iterdir()] == ["overlay"]
    assert (target / "tt_metal" / "soc_descriptors").resolve().is_dir()
    assert _contents(wheel_root / "tt_metal") == before


def test_the_compiler_stand_in_answers_as_tt_metal_asks(tmp_path: Path) -> None:
    toolchain.write_toolchain(tmp_path / "sfpi")
    compiler = tmp_path / "sfpi" / "compiler" / "bin" / "riscv-tt-elf-g++"
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    assert toolchain.STUB_VERSION in version.stdout
    program, needed = tmp_path / "k.elf", tmp_path / "k.d"
    subprocess.run([compiler, "-o", program, "k.cpp", "-MF", needed], check=True)
    assert program.read_bytes() == toolchain.empty_program()
    assert needed.read_text().split() == [f"{program}:", "k.cpp"]


def test_a_check_writes_into_its_cache_directory_only(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("home", "work", "temporary", "cache")}
    for folder in folders.values():
        folder.mkdir()
    options = {"model": "default", "device": "N150", "layers": 1, "batch_sizes": [1]}
    command = [sys.executable, "-m", "runtime.dry_run.check", "--checks", json.dumps([options])]
    command += ["--reports", str(tmp_path / "report"), "--cache_dir", str(folders["cache"])]
    subprocess.run(
        command,
        check=True,
        cwd=folders["work"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(folders["home"]),
            "TMPDIR": str(folders["temporary"]),
        },
    )
    assert json.loads((tmp_path / "report").read_text())["status"] == "pass"
    written = [path for path in tmp_path.rglob("*") if folders["cache"] not in path.parents]
    assert {path.name for path in written} == {*folders, "report"}
