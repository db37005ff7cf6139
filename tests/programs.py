"""Runs the repository's programs many times: each in a process of its own, forked from a warm one.

Importing torch and pytest takes seconds; a fork of a process that has them takes milliseconds. The
warm process computes nothing, so that its children find no thread pool that a fork has broken.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PRELOADED = (
    "pytest", "torch", "tokenizers", "safetensors.torch", "gguf", "jinja2.sandbox", "pydantic",
    "yaml", "models.checkpoints.open", "runtime.find", "runtime.prompts", "runtime.blueprint",
    "perf.predict.figures", "lt.commands",
)  # fmt: skip
_KEPT = ("PATH", "HOME", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "HF_HUB_OFFLINE")


PIPE = "pipe"


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int  # negative: killed
    output: str  # both streams
    seconds: float

    @property
    def timed_out(self) -> bool:
        return self.code == -signal.SIGKILL


class Programs:
    """A warm process to fork programs from; a context manager."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.programs"]
        environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self._warm = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._warm.stdin is not None
        self._warm.stdin.close()
        self._warm.wait(10)

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        stdout: str = "",
        largest_file: int = -1,
    ) -> Ended:
        """`python -m module arguments...`, ended after `timeout_s`.

        `stdout`: where that goes instead, a file or PIPE, which nobody reads; `largest_file`:
        bytes after which a disk is full, as far as this program can see.
        """
        asked = {
            "module": module, "arguments": list(arguments), "cwd": str(cwd),
            "environ": dict(environ or {}), "timeout_s": timeout_s,
            "stdout": stdout, "largest_file": largest_file,
        }  # fmt: skip
        assert self._warm.stdin is not None
        assert self._warm.stdout is not None
        self._warm.stdin.write(json.dumps(asked) + "\n")
        self._warm.stdin.flush()
        return Ended(**json.loads(self._warm.stdout.readline()))


def _serve() -> None:
    """Fork a program for each line that comes in."""
    for name in _PRELOADED:
        __import__(name)
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as output:
            start = time.monotonic()
            code = _fork(asked, output.fileno())
            output.seek(0)
            text = output.read().decode(errors="replace")
        ended = Ended(code, text, time.monotonic() - start)
        print(json.dumps(vars(ended)), flush=True)


def _fork(asked: Mapping[str, Any], output: int) -> int:
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if asked["stdout"] == PIPE:
            reading, writing = os.pipe()
            os.dup2(writing, 1)
            os.close(reading)
        elif asked["stdout"]:
            os.dup2(os.open(asked["stdout"], os.O_WRONLY), 1)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"], most))
        _become(asked)
    watched = os.pidfd_open(child)
    ready, _, _ = select.select([watched], [], [], asked["timeout_s"])
    os.close(watched)
    if not ready:
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become(asked: Mapping[str, Any]) -> None:
    """Be the program; never returns."""
    code: Any = 1
    try:
        os.environ.update(asked["environ"])
        os.chdir(asked["cwd"])
        sys.path.insert(0, str(ROOT))
        sys.argv = [asked["module"], *asked["arguments"]]
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) or end.code is None else _say(end.code)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = 1
        os._exit(code or 0)


def _say(text: object) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    _serve()
