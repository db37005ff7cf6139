"""From a model's name and a few options to vLLM's own arguments; what is wrong is said at once.

demo/server_example_tt.py and demo/offline_inference_tt.py start here. `vllm serve DIRECTORY` works
as well, with our options as `--additional-config '{"tt": {...}}'`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.threads import usable_cores
from models.numbers import argument
from runtime.settings import Settings
from serving.model_files import served_directory
from serving.options import ServeOptions, load_options

if TYPE_CHECKING:
    from runtime.blueprint import Blueprint

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements-vllm.txt"
MAX_MODEL_LEN = 2048
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
BATCHED_TOKENS = 4096  # prompts of 128 tokens for 32 users, in one step


def wanted_version() -> str:
    """The one version of vLLM that the plugin is made for."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("vllm=="))
    return line.removeprefix("vllm==")


def check_vllm() -> None:
    """Refuse to go on without vLLM, or with another version than ours."""
    wanted = wanted_version()
    try:
        found = version("vllm").partition("+")[0]
    except PackageNotFoundError:
        raise ValueError(f"vLLM is not installed: make setup-vllm adds {wanted}") from None
    if found != wanted:
        raise ValueError(
            f"vLLM {found} is installed, but its plugin interface is followed only as of {wanted}: "
            "run make setup-vllm"
        )


def check_port(host: str, port: int) -> None:
    """Refuse a port that somebody else listens on."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {host[:99]}:{port} ({error.strerror}): "
                "choose another --host or --port"
            ) from None


def _tt_config(text: str) -> ServeOptions:
    try:
        return ServeOptions.from_json(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the server and the offline program have in common."""
    parser.add_argument("--model", help="as HF_MODEL: directory, GGUF file, hub name or default")
    parser.add_argument(
        "--override_tt_config",
        type=_tt_config,
        default=ServeOptions(),
        metavar="JSON",
        help=f"keys: {', '.join(ServeOptions.__dataclass_fields__)}",
    )
    pages = ("--num_gpu_blocks_override", "--num-gpu-blocks-override")
    parser.add_argument(
        *pages,
        type=argument("max_num_blocks"),
        help="pages of 32 tokens; without it what all users need, or what fits",
    )
    parser.add_argument(
        "--max_seqs_in_batch", type=argument("users"), default=32, help="users at a time"
    )
    parser.add_argument(
        "--max_model_len", type=argument("max_seq_len"), default=MAX_MODEL_LEN, help="tokens"
    )
    parser.add_argument(
        "--num_scheduler_steps",
        type=argument("steps"),
        help="of old engines; accepted, without effect",
    )


def engine_arguments(given: argparse.Namespace, default_model: str | None) -> dict[str, Any]:
    """vLLM's engine arguments for what was given."""
    if given.num_scheduler_steps is not None:
        print("--num_scheduler_steps has no effect: vLLM schedules every step by itself")
    name = given.model or default_model or "default"
    pages = given.num_gpu_blocks_override
    return {
        "model": str(served_directory(name)),
        "served_model_name": "SmolLM2-135M-Instruct" if name == "default" else name,
        "max_model_len": given.max_model_len,
        "max_num_seqs": given.max_seqs_in_batch,
        "max_num_batched_tokens": max(BATCHED_TOKENS, given.max_seqs_in_batch * 128),
        "additional_config": {"tt": given.override_tt_config.to_dict()},
        **({} if pages is None else {"num_gpu_blocks_override": pages}),
    }


def check_run(given: argparse.Namespace, settings: Settings) -> None:
    """Refuse what the device cannot hold. Chooses the emulator: for a process of its own."""
    import backends

    backends.select("emulator")
    from models.registry import load_config
    from runtime.blueprint import draw

    directory = served_directory(given.model or settings.checkpoint or "default")
    wanted = load_options(
        given.override_tt_config,
        settings,
        model=str(directory),
        weights="placeholder",
        users=given.max_seqs_in_batch,
        max_seq_len=given.max_model_len,
        block_size=32,
    )
    plan = draw(wanted, settings, load_config(directory))
    page_count(plan, given.num_gpu_blocks_override)


def start_check(given: argparse.Namespace, settings: Settings) -> Callable[[], None]:
    """check_run in a process of its own, while this one goes on; the answer waits, and raises."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def check() -> None:
        try:
            check_run(given, settings)
        except ValueError as error:
            theirs.send(str(error))
        else:
            theirs.send(None)

    process = context.Process(target=check)
    process.start()
    theirs.close()

    def answer() -> None:
        try:
            refused = ours.recv()
        except EOFError:
            refused = "what the device can hold could not be found out; the reason stands above"
        process.join()
        if refused:
            raise ValueError(refused)

    return answer


def fork_engine() -> None:
    """Let vLLM's engine process have what this one has imported, unless the user says otherwise.

    A fork has the descriptor by which an event loop hears of signals, and must not write to it; it
    closes its device and ends when this process ends, be it killed. With a number of threads said,
    vLLM starts none itself: threads do not survive a fork.
    """
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    prctl = ctypes.CDLL(None).prctl

    def in_child() -> None:
        signal.set_wakeup_fd(-1)
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))

    os.register_at_fork(after_in_child=in_child)


def page_count(plan: Blueprint, asked: int | None) -> int:
    """Pages of each group: its part of what was asked for, else what its users need, or what fits.

    One page of each is nobody's: padding points to it.
    """
    options = plan.options
    block, length, groups = options.cache.block_size, options.max_seq_len, options.data_parallel
    assert block is not None, "served caches are paged"
    each, fit = -(-length // block), plan.blocks_that_fit(length)
    count = asked // groups if asked else min(fit, options.max_batch_size * each + 1)
    if asked and asked % groups:
        raise ValueError(
            f"--num-gpu-blocks-override is {asked}: {groups} data-parallel groups share the pages, "
            f"use a multiple of {groups}"
        )
    if count > fit or count < each + 1:
        raise ValueError(
            f"{count} pages of {block} tokens do not serve a context of {length} on "
            f"{options.device}: one request needs {each}, one is nobody's, and {max(fit, 0)} "
            f"fit{' in each group' if groups > 1 else ''}; use --max_model_len (vLLM: "
            "--max-model-len) or --num-gpu-blocks-override"
        )
    return count
