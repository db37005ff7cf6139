"""What a decode step gives, and the device's inputs for choosing tokens."""

from __future__ import annotations

from collections.abc import MutableMapping
from enum import Enum

import torch

from backends import ttnn
from models.layers.sampler import SamplingInputs
from runtime.inputs import InputPlacer
from runtime.sampling import DeviceSampling
from runtime.traces import Trace


class Result(Enum):
    """What a decode step gives; each is a program, and a trace, of its own."""

    LOGITS = "logits"
    LIKELIEST = "the likeliest tokens"
    DRAWN = "tokens drawn by seeds"


class Choices:
    """Buffers of k, p, inverse temperature and seed of every slot."""

    def __init__(self, place: InputPlacer, batch: int) -> None:
        ones, zeros = torch.ones(batch), torch.zeros(batch, dtype=torch.int32)
        self.top_k = place.buffer(ones.to(torch.int32), ttnn.uint32)
        self.top_p = place.buffer(ones - 1, ttnn.bfloat16)
        self.inverse_temperature = place.buffer(ones, ttnn.bfloat16)
        self.seeds = place.buffer(zeros, ttnn.uint32)

    def _wanted(self, sampling: DeviceSampling) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch = len(self.top_k.values)
        inverse = 1 / sampling.temperature[:batch].float()
        return sampling.top_k[:batch].to(torch.int32), sampling.top_p[:batch].float(), inverse

    def hold(self, sampling: DeviceSampling) -> bool:
        """Whether the device has these settings, and needs no seeds."""
        buffers = (self.top_k, self.top_p, self.inverse_temperature)
        pairs = zip(buffers, self._wanted(sampling), strict=True)
        return sampling.seeds is None and all(torch.equal(b.values, wanted) for b, wanted in pairs)

    def write(
        self, sampling: DeviceSampling | None, traces: MutableMapping[Result, Trace]
    ) -> Result:
        """Send the settings that changed; returns what the step is to give."""
        if sampling is None:
            return Result.LOGITS
        buffers = (self.top_k, self.top_p, self.inverse_temperature)
        for buffer, wanted in zip(buffers, self._wanted(sampling), strict=True):
            buffer.write(wanted)
        if sampling.seeds is None and Result.DRAWN not in traces:
            return Result.LIKELIEST
        if sampling.seeds is not None:
            self.seeds.write(sampling.seeds[: len(self.top_k.values)])
        if Result.LIKELIEST in traces:  # draws can also take the likeliest, from one trace
            traces.pop(Result.LIKELIEST).release()
        return Result.DRAWN

    def inputs(self, result: Result) -> SamplingInputs:
        """The device tensors."""
        return SamplingInputs(
            self.top_k.tensor,
            self.top_p.tensor,
            self.inverse_temperature.tensor,
            self.seeds.tensor if result is Result.DRAWN else None,
        )
