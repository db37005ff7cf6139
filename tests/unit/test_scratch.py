"""Unfinished files: who is killed leaves them to the next, who is at work keeps them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from backends.scratch import remove_abandoned, scratch_folder, write_whole

ROOT = Path(__file__).resolve().parents[2]
# Makes what its argument says, in a cache of its own kind, and stops in the middle.
MAKERS = """
import sys, time
from pathlib import Path
cache = Path(sys.argv[2])
def stop(*_, **__):
    print("in the middle", flush=True)
    time.sleep(60)
def served():
    from transformers import PretrainedConfig
    from serving.model_files import served_directory
    PretrainedConfig.save_pretrained = stop
    served_directory("default", cache.parent)
def overlay():
    from backends.dry_run import overlay
    overlay._fill = stop
    overlay.make_overlay(cache / "overlay", cache)
def loops():
    import subprocess
    from backends.emulator.loops import native
    native.subprocess.run = stop
    native._build(("cc",), cache / "loops.so")
def download():
    from runtime import prompts
    from pathlib import Path
    prompts._fetch = lambda url: b"text"
    Path.write_text = stop
    prompts.download("http://a", cache=cache)
globals()[sys.argv[1]]()
"""
KINDS = ("served", "overlay", "loops", "download")


def start(kind: str, cache: Path) -> subprocess.Popen[str]:
    """A process in the middle of making something in `cache`."""
    command = [sys.executable, "-c", MAKERS, kind, str(cache)]
    maker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "in the middle\n"
    return maker


def unfinished(cache: Path) -> set[Path]:
    """What lies there that nobody asked for."""
    return {path for path in cache.iterdir() if path.name.startswith(".")}


def test_the_next_maker_clears_what_killed_ones_left_and_nothing_of_one_at_work(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "served"
    cache.mkdir()
    makers, folders = [], {}
    try:
        for kind in KINDS:
            before = unfinished(cache)
            makers.append(start(kind, cache))
            (folders[kind],) = unfinished(cache) - before
        for maker, kind in zip(makers, KINDS, strict=True):
            write_whole(cache / "made", "whole")
            assert unfinished(cache) == set(folders.values()), "makers at work lost their files"
            maker.send_signal(signal.SIGKILL)
            maker.wait()
            del folders[kind]
        write_whole(cache / "made", "whole")
        assert [path.name for path in cache.iterdir()] == ["made"]
    finally:
        for maker in makers:
            maker.kill()
            maker.wait()


RACER = """
import sys
from pathlib import Path
from backends.scratch import scratch_folder
for _ in range(300):
    with scratch_folder(Path(sys.argv[1])) as folder:
        (folder / "half").write_text("mine")
        assert (folder / "half").read_text() == "mine"
"""


def test_makers_that_begin_and_clear_at_once_keep_their_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    while any(racer.poll() is None for racer in racers):
        remove_abandoned(tmp_path)
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    with scratch_folder(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]
