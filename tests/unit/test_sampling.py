"""Host sampling draws from the distribution it claims, per user and repeatably."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from runtime.sampling import HostSampler, SamplingParams, device_sampling

VOCAB = 64


def expected_distribution(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution by HF transformers' own warpers."""
    from transformers.generation import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    scores = logits.unsqueeze(0).clone()
    scores = TemperatureLogitsWarper(params.temperature)(None, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    scores = TopPLogitsWarper(params.top_p)(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=1),
        SamplingParams(temperature=0.7, top_k=8, top_p=1.0, seed=2),
        SamplingParams(temperature=1.3, top_k=32, top_p=0.8, seed=3),
    ],
)
def test_the_sampled_distribution_is_that_of_transformers(params: SamplingParams) -> None:
    torch.manual_seed(0)
    logits = torch.randn(VOCAB) * 2
    sampler = HostSampler(1, VOCAB)
    sampler.assign(0, params, [])
    num_draws = 4000
    counts = torch.zeros(VOCAB)
    for _ in range(num_draws):
        counts[sampler.sample(logits.unsqueeze(0), [0]).item()] += 1
    expected = expected_distribution(logits, params) * num_draws
    assert counts[expected == 0].sum() == 0
    likely = expected >= 5
    observed = torch.cat([counts[likely], counts[~likely].sum().unsqueeze(0)])
    wanted = torch.cat([expected[likely], expected[~likely].sum().unsqueeze(0)])
    if wanted[-1] < 1e-3:
        observed, wanted = observed[:-1], wanted[:-1]
    wanted = wanted * observed.sum() / wanted.sum()
    assert chisquare(observed.double(), wanted.double(), sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0, top_k=1, top_p=1.0),
        SamplingParams(temperature=1.0, top_k=5, top_p=0.0),
        SamplingParams(temperature=1.0, top_k=5, top_p=1e-6),
    ],
)
def test_greedy_takes_the_likeliest_token(params: SamplingParams) -> None:
    logits = torch.randn(1, VOCAB)
    sampler = HostSampler(1, VOCAB)
    sampler.assign(0, params, [])
    assert sampler.sample(logits, [0]).item() == logits.argmax()


def test_a_user_draws_the_same_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    users = [
        SamplingParams(temperature=1.0, top_k=1 + i, top_p=1 - i / 10, seed=i) for i in range(8)
    ]
    steps = torch.randn(20, 8, VOCAB)
    together = HostSampler(8, VOCAB)
    for slot, params in enumerate(users):
        together.assign(slot, params, [])
    batch = torch.stack([together.sample(logits, list(range(8))) for logits in steps])
    for slot, params in enumerate(users):
        alone = HostSampler(1, VOCAB)
        alone.assign(0, params, [])
        tokens = torch.cat([alone.sample(logits[slot : slot + 1], [0]) for logits in steps])
        assert torch.equal(tokens, batch[:, slot])


def test_penalties_change_logits_as_transformers_does() -> None:
    from transformers.generation import RepetitionPenaltyLogitsProcessor

    logits, prompt = torch.randn(1, VOCAB), [3, 5, 5]
    sampler = HostSampler(1, VOCAB)
    sampler.assign(0, SamplingParams(repetition_penalty=1.7), prompt)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), logits.clone())
    assert torch.allclose(sampler._penalise(logits, [0]), expected)


def test_presence_and_frequency_count_generated_tokens_only() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = 1.0
    sampler = HostSampler(1, VOCAB)
    sampler.assign(0, SamplingParams(presence_penalty=0.25, frequency_penalty=0.5), [7])
    assert [sampler.sample(logits, [0]).item() for _ in range(2)] == [7, 7]
    assert sampler._penalise(logits, [0])[0, 7] == pytest.approx(1 - 0.25 - 2 * 0.5)


def test_the_device_samples_what_it_can_and_nothing_else() -> None:
    users = [SamplingParams(), SamplingParams(temperature=0.7, top_k=5, top_p=0.9, seed=42)]
    device = device_sampling(users)
    assert device is not None
    assert device.top_k.tolist()[:3] == [1, 5, 1]
    assert device.top_p[1].item() == pytest.approx(0.9)
    assert len(device.temperature) == 32
    assert device.seeds is not None
    assert len(device.seeds) == 32
    greedy = device_sampling([SamplingParams()])
    assert greedy is not None
    assert greedy.seeds is None
    assert device_sampling([SamplingParams(temperature=1.0, top_k=0)]) is None
    assert device_sampling([SamplingParams(temperature=1.0, top_k=33)]) is None
    assert device_sampling([SamplingParams(frequency_penalty=0.1)]) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -1}, "use a number from 0 to 100"),
        ({"top_p": 1.5}, "from 0 to 1"),
        ({"top_q": 1}, "unknown sampling parameter top_q: choose from"),
        ({"top_k": "many"}, "use a whole number"),
    ],
)
def test_wrong_sampling_settings_are_one_clear_line(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamplingParams.from_dict(values)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(2, 32),
    top_p=st.floats(0.05, 1),
    coarse=st.booleans(),
)
def test_a_seed_draws_the_same_tokens_in_every_slot_and_on_the_emulated_device(
    seed: int, temperature: float, top_k: int, top_p: float, coarse: bool
) -> None:
    from backends.emulator.ops.sampling import draw as draw_on_device

    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(seed % 2**32))
    logits = (logits.round() if coarse else 2 * logits).bfloat16().float()  # coarse: many ties
    alone, crowded = HostSampler(1, VOCAB), HostSampler(3, VOCAB)
    alone.assign(0, params, [])
    crowded.assign(1, SamplingParams(temperature=2.0, seed=7), [])
    crowded.assign(2, params, [])
    for row in logits:
        settings = crowded.device_sampling(0, 3)
        assert settings is not None
        assert settings.seeds is not None
        streams = [torch.Generator().manual_seed(seed) for seed in settings.seeds[:3].tolist()]
        heat = (1 / settings.temperature[:3]).bfloat16().float()
        place = draw_on_device(
            row.expand(3, -1), settings.top_k[:3], settings.top_p[:3].bfloat16().float(), heat,
            streams,
        )[2]  # fmt: skip
        assert crowded.sample(row.expand(2, -1), [1, 2])[1] == place
        assert alone.sample(row.unsqueeze(0), [0]) == place


def test_without_a_seed_every_run_draws_anew() -> None:
    runs = set()
    for _ in range(8):
        sampler = HostSampler(1, VOCAB)
        sampler.assign(0, SamplingParams(temperature=1.0, top_k=0, top_p=1.0), [])
        draws = [sampler.sample(torch.zeros(1, VOCAB), [0]).item() for _ in range(8)]
        runs.add(tuple(draws))
    assert len(runs) == 8
