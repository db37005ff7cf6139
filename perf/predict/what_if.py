"""Devices, software and constants as they are named on a command line, changed where asked.

`--set` takes a device fact (dram_gbps=400), a switch of the software (traced_prefill=true) or a
constant of the model (gap_us=0.7); each is checked, and a wrong name answers with the list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backends.device_specs import SPECS, DeviceSpec
from models.fields import is_there, read_object, shown
from perf.cost.constants import Constants, load_constants
from perf.cost.software import OWN, Software, software_named, switch_names, with_switches

SPEC_FIELDS = {f.name for f in fields(DeviceSpec)}
# time of all host work to that of the machines behind the published tables
HOSTS: Mapping[str, float] = MappingProxyType(
    {
        "usual": 1.0,
        # LoudBoxes whose processor governor was not set to performance: 12 to 13 t/s/u of a 70B
        # model for 32 users instead of 15 (tt-inference-server#203)
        "untuned": 2.5,
    }
)


@dataclass(frozen=True)
class Setting:
    """Where a prediction runs, under whose habits, with which constants."""

    spec: DeviceSpec
    software: Software
    constants: Constants


def setting(
    device: str,
    software: str | None = None,
    changes: Sequence[str] = (),
    host: str = "usual",
) -> Setting:
    """What the arguments name, with the changes of --set."""
    facts: dict[str, Any] = {}
    switches: dict[str, str] = {}
    values: dict[str, float] = {"host_factor": _host_factor(host)}
    for text in changes:
        name, found, value = text.partition("=")
        if not found:
            raise ValueError(f"--set {text}: write NAME=VALUE")
        if name in switch_names():
            switches[name] = value
        elif name in SPEC_FIELDS:
            facts[name] = _number(text, value)
        else:
            values[name] = _number(text, value)
    spec = changed_spec(load_spec(device), facts)
    habits = software_named(software) if software is not None else OWN
    return Setting(spec, with_switches(habits, switches), load_constants().with_values(values))


def _host_factor(host: str) -> float:
    if host in HOSTS:
        return HOSTS[host]
    try:
        return float(host)
    except ValueError:
        raise ValueError(
            f"unknown host {shown(host)}: choose one of {', '.join(HOSTS)}, or say how many times "
            "as long as usual its work takes, e.g. 1.5"
        ) from None


def _number(text: str, value: str) -> Any:
    try:
        return json.loads(f"[{value}]" if "," in value else value)
    except ValueError:
        raise ValueError(f"--set {text}: {value!r} is not a number") from None


def load_spec(device: str) -> DeviceSpec:
    """A product, or what a JSON file says about an imagined one.

    The file names a product as `base`, and facts that differ: {"base": "N300", "dram_gbps": 576}.
    """
    if device in SPECS:
        return SPECS[device]
    path = Path(device)
    if not is_there(path) or not path.is_file():
        raise ValueError(
            f"unknown device {shown(device)}: choose one of {', '.join(SPECS)}, or give a JSON file"
        )
    try:
        values = read_object(path)
        base = SPECS[values.pop("base")]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f'{device}: expected a JSON object with "base" (one of {", ".join(SPECS)}) and '
            f"device facts, found {error!r}"
        ) from None
    return changed_spec(base, {"name": path.stem} | values)


def changed_spec(spec: DeviceSpec, values: Mapping[str, Any]) -> DeviceSpec:
    """A product with other facts; lists become tuples, unknown names answer with the list."""
    unknown = set(values) - SPEC_FIELDS
    if unknown:
        raise ValueError(
            f"unknown device fact {', '.join(sorted(unknown))}: known are "
            f"{', '.join(sorted(SPEC_FIELDS))}"
        )
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            raise ValueError(f"{name} is {value}: use a number above 0")
    tidy: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if "compute_grid" in tidy:  # of whichever way commands are dispatched
        tidy = {"column_grid": None} | tidy
    changed = replace(spec, **tidy)
    axes = [axis for axis in (0, 1) if changed.mesh_shape[axis] > 1]
    if any(changed.links[axis] < 1 for axis in axes) or (axes and changed.link_gbps <= 0):
        raise ValueError(
            f"{changed.num_chips} chips of {spec.name} have no links between them (links "
            f"{changed.links}, link_gbps {changed.link_gbps}): set links and link_gbps, too, e.g. "
            "links=0,2 link_gbps=25"
        )
    return changed
