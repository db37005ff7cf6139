"""What a served model may be told beyond vLLM's own flags: `--additional-config '{"tt": {...}}'`.

The same keys are the JSON of `--override_tt_config`. No vLLM here, so that a wrong key is refused
before it is imported; and nothing of TT-NN, since vLLM reads this before a backend is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from backends.device_specs import SPECS, DeviceSpec
from models.fields import parse_json, shown
from models.numbers import check_number
from models.sharding import TILE
from runtime.find import device_of
from runtime.settings import Settings, one_of

if TYPE_CHECKING:
    from runtime.blueprint import LoadOptions

MOST_USERS = 32  # of one data-parallel group
FABRICS = ("FABRIC_1D", "FABRIC_1D_RING", "DISABLED")
CHOICES: dict[str, tuple[str, ...]] = {
    "sample_on_device_mode": ("all", "decode_only"),
    "trace_mode": ("all", "decode_only", "none"),
    "fabric_config": FABRICS,
    "dispatch_core_axis": ("row", "col"),
}
WITHOUT_EFFECT = {
    "dispatch_core_axis": "a model's plan says from where commands are dispatched",
    "sample_on_device_mode": "prompts' first tokens are sampled on the host",
    "trace_mode": "only decode is traced",
}


@dataclass(frozen=True)
class ServeOptions:
    """Keys of the JSON; None leaves a choice to the device."""

    sample_on_device_mode: str | None = None
    trace_mode: str = "decode_only"
    fabric_config: str | None = None
    dispatch_core_axis: str = "row"
    trace_region_size: int | None = None
    worker_l1_size: int | None = None
    is_galaxy: bool | None = None
    data_parallel: int = 1
    optimizations: str = "performance"
    warm_prompts: int = 0

    @classmethod
    def from_json(cls, text: str) -> ServeOptions:
        """From the command line."""
        try:
            values = parse_json(text, "--override_tt_config")
        except ValueError as error:
            raise ValueError(
                f'{error}; write it like \'{{"sample_on_device_mode": "all"}}\''
            ) from None
        if not isinstance(values, dict):
            raise ValueError(f"--override_tt_config is {shown(text)}: use an object, {_known()}")
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ServeOptions:
        """Check names, types and choices; one line says what is wrong."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown key {shown(unknown[0])} in the TT config: " + _known())
        for name, value in values.items():
            _check(name, value)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Only what differs from the defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    def notices(self) -> list[str]:
        """One line for each value that is accepted but does not do all that it says."""
        said = {"dispatch_core_axis": "col", "sample_on_device_mode": "all", "trace_mode": "all"}
        return [
            f"{name} {value!r} acts in part or not at all: {WITHOUT_EFFECT[name]}"
            for name, value in said.items()
            if getattr(self, name) == value
        ]


def _known() -> str:
    return "known keys are " + ", ".join(field.name for field in fields(ServeOptions))


def _check(name: str, value: Any) -> None:
    """Refuse a value of the wrong type, or one that is no choice."""
    if name in CHOICES:
        one_of(str(value), name, CHOICES[name])
    elif name == "is_galaxy":
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {shown(value)}: use true or false")
    elif name == "optimizations":
        if not isinstance(value, str):
            raise ValueError(
                f"{name} is {shown(value)}: use performance, accuracy or single settings"
            )
    else:
        check_number(name, value)


def serving_device(options: ServeOptions, settings: Settings) -> DeviceSpec:
    """Facts of the device to serve on."""
    spec = SPECS[device_of(settings, "TG" if options.is_galaxy else "N150")]
    if options.is_galaxy is not None and options.is_galaxy != (spec.name == "TG"):
        raise ValueError(
            f"is_galaxy is {options.is_galaxy}, but the device is {spec.name}: "
            "set MESH_DEVICE=TG, or leave is_galaxy out"
        )
    return spec


def group_batch(users: int, data_parallel: int) -> int:
    """Slots of one data-parallel group, for `users` at a time in all groups."""
    per_group = -(-users // data_parallel)
    if per_group > MOST_USERS:
        raise ValueError(
            f"{users} sequences at a time are too many: {data_parallel} data-parallel group(s) of "
            f"{MOST_USERS} hold {data_parallel * MOST_USERS}; use --max-num-seqs"
        )
    return 1 << (per_group - 1).bit_length()


def load_options(
    options: ServeOptions,
    settings: Settings,
    *,
    model: str,
    weights: str,
    users: int,
    max_seq_len: int,
    block_size: int,
    layers: range | None = None,
) -> LoadOptions:
    """How to load a served model; its page pool is sized afterwards. Needs a chosen backend."""
    from models.kv_cache import CacheConfig
    from runtime.blueprint import LoadOptions

    if block_size % TILE:
        raise ValueError(f"block size {block_size}: use a multiple of {TILE} tokens, such as 32")
    chosen = LoadOptions(
        model=model,
        device=serving_device(options, settings).name,
        weights=weights,
        optimizations=options.optimizations,
        max_batch_size=group_batch(users, options.data_parallel),
        max_seq_len=max_seq_len,
        cache=CacheConfig(block_size, 0),
        layers=layers,
        data_parallel=options.data_parallel,
        enable_trace=options.trace_mode != "none",
        ring=None if options.fabric_config is None else options.fabric_config == FABRICS[1],
        worker_l1_size=options.worker_l1_size,
    )
    if options.trace_region_size is not None:
        chosen = replace(chosen, trace_region_size=options.trace_region_size)
    return chosen
