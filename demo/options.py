"""Command-line overrides of the demos: one table, one typed reader, one way to apply them.

An option that is not given is None; anything given wins over the case, also 0, false and "".
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import yaml

from demo.cases import Case, PageParams
from models.fields import is_there, shown
from models.numbers import argument as number
from runtime.sampling import SamplingParams
from runtime.settings import parse_bool

MODES = ("full", "prefill", "decode")
WEIGHTS = ("instruct", "random")
AnyCase = TypeVar("AnyCase", bound=Case)


def read_bool(text: str) -> bool:
    """1/true/yes/on or 0/false/no/off."""
    return parse_bool(text, "the value")


def read_dict(text: str) -> dict[str, Any]:
    """A dict as JSON, as Python or bare: {temperature: 0.7, top_p: 0.9}."""
    try:
        # YAML wants a space after the colon of a bare key; a shell command is easier without
        value = yaml.safe_load(re.sub(r"(\w):(?=\S)", r"\1: ", text))
    except (yaml.YAMLError, ValueError):  # a date that is none, a number of too many digits
        value = None
    if not isinstance(value, dict):
        raise ValueError(
            f'the value is {shown(text)}: use a dict like \'{{"key": 1, "other": 2}}\''
        )
    return {str(key): entry for key, entry in value.items()}


def read_sampling(text: str) -> SamplingParams:
    """Sampling settings; what is not named keeps its default."""
    return SamplingParams.from_dict(read_dict(text))


def read_pages(text: str) -> PageParams:
    """Page settings by any of the names in use."""
    return PageParams.from_dict(read_dict(text))


def read_file(text: str) -> Path:
    """An existing file."""
    path = Path(text)
    if not is_there(path) or not path.is_file():
        raise ValueError(f"there is no file {shown(text, 200)}")
    return path


def one_of(*choices: str) -> Callable[[str], str]:
    """A reader of one of some words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"the value is {shown(text)}: choose one of {', '.join(choices)}")
        return text

    return read


@dataclass(frozen=True)
class Option:
    """One override; `field` is the field of a case it sets."""

    field: str
    read: Callable[[str], Any]
    help: str
    aliases: tuple[str, ...] = ()


OPTIONS = (
    Option("input_prompts", str, "JSON file with prompts, or the name of a set in sample_prompts"),
    Option("image", Path, "image to ask about in place of the prompts' own (vision demo)"),
    Option("instruct", read_bool, "wrap prompts in the model's chat template"),
    Option("repeat_batches", number("repeat_batches"), "batches to run one after the other"),
    Option("max_seq_len", number("max_seq_len"), "context length to make room for, in tokens"),
    Option(
        "batch_size", number("batch_size"), "users per data-parallel group: 1, 2, 4, 8, 16 or 32"
    ),
    Option(
        "max_generated_tokens",
        number("max_generated_tokens"),
        "tokens to generate per user at most",
    ),
    Option("paged_attention", read_bool, "paged KV cache instead of one row per user"),
    Option("page_params", read_pages, "{block_size, max_num_blocks} of the paged cache"),
    Option("sampling_params", read_sampling, "{temperature, top_p, top_k, seed, ...}"),
    Option("stop_at_eos", read_bool, "end an answer at the model's end token"),
    Option("optimizations", str, "performance, accuracy or 'precision_cfg = {...}, ...'"),
    Option("decoder_config_file", read_file, "JSON with a precision per decoder"),
    Option("token_accuracy", read_bool, "compare tokens with a reference, teacher-forced"),
    Option("data_parallel", number("data_parallel"), "groups of chips that each run the model"),
    Option("weights", one_of(*WEIGHTS), "instruct: the checkpoint's; random: seeded noise"),
    Option("num_layers", number("num_layers"), "decoder layers to build", ("--layers",)),
    Option("stress_test", read_bool, "keep or wrap positions instead of ending at the context"),
    Option("mode", one_of(*MODES), "phases to run: full, prefill or decode"),
    Option("share_prefixes", read_bool, "users with the same leading tokens share pages"),
    Option("sample_on_device", read_bool, "choose tokens on the device where it can"),
    Option("start_pos", number("start_pos"), "position of the first token (demo_decode)"),
    Option("print_outputs", read_bool, "print every user's token at every iteration"),
    Option("print_iterations", read_bool, "print every iteration's speed"),
    Option("prefill_profile", read_bool, "run prefill only, for profiling (text_demo)"),
    Option("pcc_check", read_bool, "compare layers and logits with Hugging Face by PCC"),
    Option("apc_test", read_bool, "repeat the run and ask for identical numbers (text_demo)"),
)


def add_options(parser: Any) -> None:
    """Register the overrides with pytest."""
    group = parser.getgroup("demo", "demo overrides")
    for option in OPTIONS:
        flags = [f"--{option.field}", *option.aliases]
        group.addoption(
            *flags, dest=option.field, type=_argparse(option.read), default=None, help=option.help
        )
    group.addoption(
        "--enable_trace", dest="enable_trace", action="store_true", default=None,
        help="record decode once and replay it",
    )  # fmt: skip
    group.addoption(
        "--disable_trace", dest="disable_trace", action="store_true", default=None,
        help="launch every op from the host",
    )  # fmt: skip
    group.addoption("--FAKE_DEVICE", default=None, help="emulate this device, e.g. TG")


def given_options(config: Any) -> dict[str, Any]:
    """Field -> value of every override on the command line."""
    values = {option.field: config.getoption(option.field) for option in OPTIONS}
    enable, disable = config.getoption("enable_trace"), config.getoption("disable_trace")
    if enable and disable:
        raise ValueError("--enable_trace and --disable_trace are both given: use one")
    values["enable_trace"] = True if enable else False if disable else None
    return {name: value for name, value in values.items() if value is not None}


def apply_options(case: AnyCase, given: dict[str, Any]) -> AnyCase:
    """The case with the overrides; one it does not know is an error that lists those it does."""
    known = {field.name for field in fields(case)}
    unknown = sorted(set(given) - known)
    if unknown:
        offered = [f"--{o.field}" for o in OPTIONS if o.field in known]
        raise ValueError(f"this demo has no --{unknown[0]}: its overrides are {', '.join(offered)}")
    return replace(case, **given)


def _argparse(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Errors of a reader as argparse shows them: one line with the option's name."""

    @wraps(read)
    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
