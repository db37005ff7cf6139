"""Host sampling draws from the distribution it claims, per user and repeatably."""

import pytest
import torch
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
    assert device.seed == 42
    assert device_sampling([SamplingParams(temperature=1.0, top_k=0)]) is None
    assert device_sampling([SamplingParams(temperature=1.0, top_k=33)]) is None
    assert device_sampling([SamplingParams(frequency_penalty=0.1)]) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -1}, "at least 0"),
        ({"top_p": 1.5}, "between 0 and 1"),
        ({"top_q": 1}, "unknown sampling parameter top_q: choose from"),
        ({"top_k": "many"}, "use a number"),
    ],
)
def test_wrong_sampling_settings_are_one_clear_line(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamplingParams.from_dict(values)
