"""Predicted TTFT and tokens/s/user of a model on a product, from the op list of its real forward.

    python -m perf.predict --model Llama-3.1-8B --device N150 --batch_size 1 --prefill_len 128 \\
        --optimizations performance [--data_parallel N] [--json]

Time = sum of op times + launch gaps + host work; definitions as in perf/metrics.py. How good it is:
python -m perf.calibrate --report. The command line is in __main__.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from backends.device_specs import DeviceSpec
from backends.op_record import OpRecord
from perf.cost.constants import Constants, load_constants
from perf.cost.links import PERSISTENT
from perf.cost.price import OpTime, op_time
from perf.cost.software import OWN, Software
from perf.cost.units import BESIDE, COLLECTIVES, Situation, is_view
from perf.op_lists.record import CountedOp, OpList, RunOps, Workload
from perf.predict.harness import DEMO, Harness
from perf.predict.host import PrefillRun, decode_host_ms
from perf.predict.interval import trust

# beside linear; what travels meanwhile is not told apart
MULTIPLYING = (
    "matmul", "experimental.llama_rs_matmul", "experimental.matmul_reduce_scatter_async",
    "experimental.all_gather_matmul_async",
)  # fmt: skip


@dataclass(frozen=True)
class PhaseTimes:
    """Times of one decode step, or of one user's prefill."""

    ms: float
    limit_ms: float
    breakdown: dict[str, float]  # ms by group of ops, host and launches included
    bounds: dict[str, float]  # ms by what binds

    @property
    def bound(self) -> str:
        """What most of the time is bound by."""
        return max(self.bounds, key=lambda name: self.bounds[name])


@dataclass(frozen=True)
class Prediction:
    """Figures as the harness defines them; intervals held 80 % of sources not fitted."""

    ttft_ms: float
    tokens_per_s_per_user: float
    tokens_per_s: float
    interval: dict[str, tuple[float, float]]
    decode: PhaseTimes
    prefill: PhaseTimes
    assumes: str = ""  # what the figures depend on beside model and device
    unknown: tuple[str, ...] = ()  # what was never fitted, so that intervals are wider
    settings: dict[str, object] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """What --json prints."""
        return {
            **self.settings,
            "provenance": "modelled",
            "assumes": self.assumes,
            "ttft_ms": self.ttft_ms,
            "tokens_per_s_per_user": self.tokens_per_s_per_user,
            "tokens_per_s": self.tokens_per_s,
            "interval": self.interval,
            "never_fitted": list(self.unknown),
            "limit_fraction": self.decode.limit_ms / self.decode.ms,
            "ttft_limit_fraction": self.prefill.limit_ms / self.prefill.ms,
            "bound": self.decode.bound,
            "ttft_bound": self.prefill.bound,
            "breakdown": {"decode_ms": self.decode.breakdown, "prefill_ms": self.prefill.breakdown},
        }


def group_of(record: OpRecord) -> str:
    """Which line of the breakdown an op belongs to, by its name and its place in the model."""
    name = record.name
    part = record.scope.rsplit(".", 1)[-1] or "other"
    programmed = name in MULTIPLYING and "program_config" in record.attributes
    if programmed or name == "linear":
        return f"{part} matmuls"
    if name in COLLECTIVES:
        return "collectives"
    if "dot_product_attention" in name:
        return "attention scores"
    if "norm" in name or "rms" in name:
        return "norms"
    if part in ("embedding", "sampling"):
        return part
    return "small ops"


@dataclass
class _Sum:
    """Adds up op times."""

    breakdown: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    limit_us: float = 0.0
    us: float = 0.0
    launches: int = 0

    def add(self, group: str, bound: str, us: float, limit_us: float = 0.0) -> None:
        self.breakdown[group] = self.breakdown.get(group, 0.0) + us / 1000
        self.bounds[bound] = self.bounds.get(bound, 0.0) + us / 1000
        self.us += us
        self.limit_us += limit_us

    def scaled(self, share: float) -> _Sum:
        """A share of everything but the launches."""
        return _Sum(
            {name: ms * share for name, ms in self.breakdown.items()},
            {name: ms * share for name, ms in self.bounds.items()},
            self.limit_us * share,
            self.us * share,
            self.launches,
        )

    def phase(self) -> PhaseTimes:
        """The sums, biggest first; a sum below the physical limit is refused, not mended."""
        if self.us < self.limit_us:
            raise ValueError(
                f"{self.us / 1000:.2f} ms are predicted where the device needs "
                f"{self.limit_us / 1000:.2f} at least: the software or the constants do not "
                "belong to this device"
            )
        ordered = sorted(self.breakdown.items(), key=lambda item: -item[1])
        return PhaseTimes(self.us / 1000, self.limit_us / 1000, dict(ordered), self.bounds)


def launched(ops: OpList) -> list[CountedOp]:
    """The ops that are launched: views are not."""
    return [op for op in ops.ops if not is_view(op.record)]


def sum_ops(ops: OpList, state: Situation, *, without: Sequence[str] = ()) -> _Sum:
    """All ops of a list with their launch gaps; equal records are timed once."""
    total = _Sum()
    timed: dict[int, OpTime] = {}
    beside_us = 0.0
    for op in launched(ops):
        if op.record.name in without or group_of(op.record) in without:
            continue
        time = timed.get(id(op.record))
        if time is None:
            time = timed[id(op.record)] = op_time(op.record, state)
        if op.record.name in BESIDE:
            beside_us += op.count * time.us
            total.limit_us += op.count * time.limit_us
            continue
        group = group_of(op.record)
        total.add(group, time.bound, op.count * time.us, op.count * time.limit_us)
        total.launches += op.count
    total.add("launch gaps", "launch", total.launches * gap_us(ops, state))
    if beside_us > total.us:
        total.add("weights", "dram", beside_us - total.us)
    return total


def gap_us(ops: OpList, state: Situation) -> float:
    """Between two launches: shorter where collectives need no other chip to begin.

    That was timed on a Galaxy, whose commands do not come through ethernet: 2D meshes claim it.
    """
    c = state.constants
    fused = state.is_grid and any(op.record.name in PERSISTENT for op in ops.ops)
    return c.galaxy_gap_us if fused else c.gap_us


def refuse_left_out(run: RunOps, names: Sequence[str]) -> None:
    """Refuse to leave out what is not there."""
    known: dict[str, None] = {}
    for op in (*run.decode.ops, *run.prefill.ops):
        known |= dict.fromkeys((group_of(op.record), op.record.name))
    for name in names:
        if name not in known:
            raise ValueError(f"nothing is called {name!r} here: choose of {', '.join(known)}")


def refuse_images(workload: Workload) -> None:
    """Refuse a model that also reads images, unless it is said whether it does."""
    from models.registry import load_config

    config = load_config(workload.model)
    if config.vision is not None or "vision" in config.name.lower():
        raise ValueError(
            f"{workload.model} reads images: say how many a prompt has (--images 1), or --text_only"
        )


def decode_phase(
    run: RunOps,
    state: Situation,
    *,
    data_parallel: int = 1,
    harness: Harness = DEMO,
    without: Sequence[str] = (),
) -> PhaseTimes:
    """One decode step of all users."""
    total = sum_ops(run.decode, state, without=without)
    host = decode_host_ms(run, state, data_parallel, harness, device_ms=total.us / 1000)
    total.add("host", "host", 1000 * host)
    return total.phase()


def prefill_phase(
    run: RunOps, state: Situation, how: PrefillRun, *, without: Sequence[str] = ()
) -> PhaseTimes:
    """Prefill of one user: the whole of a pass divided by its users."""
    state = replace(state, prefill=True)
    device = sum_ops(run.prefill, state, without=without)
    total = device.scaled(how.share(state.constants))
    dispatch = Dispatch.of(run, state, without).us(state.constants)
    for name, us in how.host_us(device.us, dispatch, state.constants).items():
        total.add(name, "host", us)
    return total.scaled(1 / run.prefill_users).phase()


@dataclass(frozen=True)
class Dispatch:
    """What the host hands over in a prefill without a trace."""

    ops: int
    collectives: int
    chips: int

    @classmethod
    def of(cls, run: RunOps, state: Situation, without: Sequence[str] = ()) -> Dispatch:
        """Count the launches of a prefill."""
        state = replace(state, prefill=True)
        kept = [op for op in launched(run.prefill) if op.record.name not in without]
        return cls(
            sum(op.count for op in kept),
            sum(op.count for op in kept if op.record.name in COLLECTIVES),
            run.mesh_shape[0] * run.mesh_shape[1],
        )

    def us(self, c: Constants) -> float:
        """Host time: ops run chip by chip, collectives need more of it."""
        per_op = c.host_op_us + (self.chips - 1) * c.host_chip_us
        return c.host_factor * (self.ops * per_op + self.collectives * c.host_link_op_us)


def predict_ops(
    run: RunOps,
    spec: DeviceSpec,
    *,
    users: int,
    prefill_len: int,
    context: int,
    data_parallel: int = 1,
    software: Software = OWN,
    harness: Harness = DEMO,
    constants: Constants | None = None,
    without: Sequence[str] = (),
    workload: Workload | None = None,
) -> Prediction:
    """Figures of op lists that ran or were recorded; `users` of one data-parallel group."""
    refuse_left_out(run, without)
    c = constants or load_constants()
    state = Situation(run.spec(spec), c, software, context, users, min(run.mesh_shape) > 1)
    options: dict[str, Any] = {"harness": harness, "without": without}
    decode = decode_phase(run, state, data_parallel=data_parallel, **options)
    how = PrefillRun.of(
        run, state, users=users, prefill_len=prefill_len, data_parallel=data_parallel
    )
    prefill = prefill_phase(run, state, how, without=without)
    ttft = harness.ttft_ms(prefill.ms, users, decode.ms, c, software)
    speed = 1000 / decode.ms
    sure = trust(
        harness, software, device=spec.name, context=context, host_factor=c.host_factor,
        workload=workload,
    )  # fmt: skip
    return Prediction(
        ttft_ms=ttft,
        tokens_per_s_per_user=speed,
        tokens_per_s=speed * users * data_parallel,
        interval={
            "tokens_per_s_per_user": _spread(speed, sure.ratios("decode")),
            "ttft_ms": _spread(ttft, sure.ratios("ttft")),
        },
        decode=decode,
        prefill=prefill,
        assumes=f"software {software.name}, tokens chosen on the "
        f"{'host' if run.decode.host_elements else 'device'}, prompts padded to "
        f"{software.padded_len(prefill_len) or prefill_len} tokens, decode at a context of "
        f"{context}" + (f", host work {c.host_factor:g} times the usual" * (c.host_factor != 1)),
        unknown=sure.unknown,
    )


def _spread(value: float, ratios: tuple[float, float]) -> tuple[float, float]:
    return value * ratios[0], value * ratios[1]


def predict(
    workload: Workload,
    *,
    software: Software = OWN,
    harness: Harness = DEMO,
    constants: Constants | None = None,
    without: Sequence[str] = (),
) -> Prediction:
    """Figures of a workload; see op_lists/record.py for what it says."""
    from perf.op_lists.kept import run_ops

    return predict_ops(
        run_ops(workload),
        workload.spec,
        users=workload.batch_size,
        prefill_len=workload.prefill_len,
        context=workload.context,
        data_parallel=workload.data_parallel,
        software=software,
        harness=harness,
        constants=constants,
        without=without,
        workload=workload,
    )


def workload_for(
    model: str,
    spec: DeviceSpec,
    *,
    software: Software = OWN,
    harness: Harness = DEMO,
    batch_size: int = 1,
    data_parallel: int = 1,
    **options: object,
) -> Workload:
    """A workload with the sampling and batching habits of a release and a harness."""
    from models.registry import canonical_name

    if harness.generated is not None:
        options["generated"] = harness.generated
    rows, cols = spec.mesh_shape
    is_grid = data_parallel == 1 and min(rows, cols) > 1
    return Workload(
        model,
        spec,
        batch_size=batch_size,
        data_parallel=data_parallel,
        device_sampling=software.samples_on_device(max(batch_size, harness.slots), is_grid),
        batched_prefill=software.batched_prefill and batch_size > 1,
        slots=harness.slots,
        padded_len=software.padded_len(int(str(options.get("prefill_len", Workload.prefill_len)))),
        fill_grid=software.fills_grid,
        pad_heads=software.pads_heads,
        habits=software.plans,
        pad_mlp_cores=software.mlp_cores.get(canonical_name(str(model)) or ""),
        **options,  # type: ignore[arg-type]
    )


def dump_json(values: Mapping[str, object]) -> str:
    """JSON with figures rounded to what they are worth."""

    def tidy(value: object) -> object:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, Mapping):
            return {key: tidy(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [tidy(item) for item in value]
        return value

    return json.dumps(tidy(values), indent=2)
