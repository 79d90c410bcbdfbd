"""Chains: drawn and scored alike, row by row, and equal to what diffusers' pipelines draw."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from tiny_models import LATENT, SCHEDULE, guided_predictor, tiny_sd, tiny_sdxl

from diffusion.chain import DenoisingChain, sample_chain, score_chain, score_steps
from diffusion.process import reverse_process

SHAPE = (4, 8, 8)


def toy_predictor(seed: int, shape=SHAPE):
    """Elementwise, so that a row's output is the same to the last bit in any batch."""
    weight, bias = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))

    def predict(x_t, t, cond):
        shift = (t / 1000 + cond["shift"]).reshape(-1, *[1] * len(shape))
        return torch.tanh(weight * x_t + bias * shift)

    return predict


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def condition(*shifts: float) -> dict[str, torch.Tensor]:
    return {"shift": torch.tensor(shifts)}


PROCESSES = {
    "ddim": reverse_process(DDIMScheduler(**SCHEDULE), 10),
    "ddim-eta-half": reverse_process(DDIMScheduler(**SCHEDULE), 10, eta=0.5),
    "ddim-last-deterministic": reverse_process(DDIMScheduler(), 10),
    "ddpm": reverse_process(DDPMScheduler(clip_sample=False, prediction_type="v_prediction"), 10),
}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_stored_chain_scores_exactly_as_it_was_drawn(name, dtype):
    process, predict, cond = PROCESSES[name], toy_predictor(0), condition(0.0, 1.0, -2.0)
    chain = sample_chain(predict, process, cond, SHAPE, generators(1, 2, 3), storage_dtype=dtype)
    assert chain.x.shape == (11, 3, *SHAPE) and chain.x.dtype == dtype
    assert chain.log_prob.shape == (3, 10) and chain.log_prob.dtype == torch.float32
    assert torch.equal(chain.sample, chain.x[10])
    assert chain.dimensions == 4 * 8 * 8
    assert chain.log_prob_ref is None and chain.kl is None
    scored = score_chain(predict, process, chain, cond)
    torch.testing.assert_close(scored, chain.log_prob, rtol=0, atol=1e-6)
    assert (chain.log_prob != 0).all(0).tolist() == process.stochastic.tolist()


@pytest.mark.parametrize(("dtype", "shift"), [(torch.bfloat16, 1e-4), (torch.float16, 1e-5)])
def test_rounding_after_scoring_would_shift_the_log_prob(dtype, shift):
    """Why `sample_chain` rounds first: the shift dwarfs a clip range of 1e-6 to 1e-4."""
    process, predict, cond = PROCESSES["ddim"], toy_predictor(0), condition(0.0, 1.0)
    drawn = sample_chain(predict, process, cond, SHAPE, generators(1, 2))
    rounded = DenoisingChain(drawn.x.to(dtype), drawn.log_prob)
    moved = (score_chain(predict, process, rounded, cond) - drawn.log_prob).abs()
    assert moved.max() > shift
    assert moved[:, -2:].mean() > shift  # the low-noise steps suffer most


def test_a_row_does_not_depend_on_its_batch():
    process, predict = PROCESSES["ddim"], toy_predictor(0)
    both = sample_chain(predict, process, condition(0.5, 2.0), SHAPE, generators(7, 8))
    alone = sample_chain(predict, process, condition(0.5), SHAPE, generators(7))
    assert torch.equal(both.x[:, :1], alone.x)
    assert torch.equal(both.log_prob[:1], alone.log_prob)
    assert not torch.equal(both.x[:, 0], both.x[:, 1])
    again = sample_chain(predict, process, condition(0.5, 2.0), SHAPE, generators(7, 8))
    assert torch.equal(again.x, both.x)


def test_steps_may_be_scored_in_any_mixture():
    process, predict, cond = PROCESSES["ddpm"], toy_predictor(0), condition(0.0, 1.0, -2.0)
    chain = sample_chain(predict, process, cond, SHAPE, generators(1, 2, 3))
    rows, steps = torch.tensor([2, 0, 2, 1]), torch.tensor([0, 9, 5, 3])
    mixed = {"shift": cond["shift"][rows]}
    scored = score_steps(predict, process, chain, mixed, rows, steps)
    torch.testing.assert_close(scored, chain.log_prob[rows, steps], rtol=0, atol=1e-6)


def test_the_reference_itself_has_zero_kl_and_equal_log_probs():
    process, predict = PROCESSES["ddim-last-deterministic"], toy_predictor(0)
    chain = sample_chain(
        predict, process, condition(0.0, 1.0), SHAPE, generators(1, 2), reference=predict
    )
    assert torch.equal(chain.log_prob_ref, chain.log_prob)
    assert chain.kl.shape == (2, 10) and chain.kl.abs().max() == 0


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_kl_is_the_expected_log_ratio(name):
    """Given x_t, E[log p - log p_ref] is the closed-form KL: 20,000 draws, four standard errors."""
    process, shape, batch = PROCESSES[name], (2,), 20_000
    current, reference = toy_predictor(0, shape), toy_predictor(1, shape)
    random = torch.Generator().manual_seed(0)
    cond = {"shift": torch.randn(batch, generator=random)}
    chain = sample_chain(  # one generator may serve many rows
        current, process, cond, shape, [random] * batch, reference=reference
    )
    used = process.stochastic
    gap = (chain.log_prob - chain.log_prob_ref - chain.kl)[:, used]
    error = gap.std(0) / batch**0.5
    assert (gap.mean(0).abs() < 4 * error).all()
    assert (chain.kl.mean(0)[used] > 8 * error)[4:].all()  # or the line above would show nothing
    assert (chain.kl[:, ~used] == 0).all()


def test_concatenate_joins_along_the_batch():
    process, predict = PROCESSES["ddim"], toy_predictor(0)
    parts = [
        sample_chain(predict, process, condition(s), SHAPE, generators(i), reference=predict)
        for i, s in enumerate((0.5, 2.0))
    ]
    joined = DenoisingChain.concatenate(parts)
    whole = sample_chain(
        predict, process, condition(0.5, 2.0), SHAPE, generators(0, 1), reference=predict
    )
    for name in ("x", "log_prob", "log_prob_ref", "kl"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name
    parts[1].kl = parts[1].log_prob_ref = None
    joined = DenoisingChain.concatenate(parts)
    assert joined.kl is None and joined.log_prob_ref is None and joined.x.shape[1] == 2


def encode(pipe, prompts: list[str], scale: float) -> dict[str, torch.Tensor]:
    guided = scale > 1
    if "XL" not in type(pipe).__name__:
        text, negative = pipe.encode_prompt(prompts, "cpu", 1, guided)
        return {"text": text} | ({"text_negative": negative} if guided else {})
    text, negative, pooled, pooled_negative = pipe.encode_prompt(
        prompts, device="cpu", do_classifier_free_guidance=guided
    )
    size = torch.tensor([16.0, 16, 0, 0, 16, 16]).expand(len(prompts), -1)
    cond = {"text": text, "pooled": pooled, "time_ids": size}
    if guided:
        cond |= {"text_negative": negative, "pooled_negative": pooled_negative}
    return cond


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("schedule", [{}, {"prediction_type": "v_prediction"}])
def test_the_sample_is_the_pipelines_own(build, scale, schedule):
    pipe, prompts = build(**schedule), ["a red circle", "two"]
    latents = pipe(
        prompts,
        num_inference_steps=4,
        guidance_scale=scale,
        eta=1.0,
        generator=generators(1, 2),
        height=16,
        width=16,
        output_type="latent",
    ).images
    with torch.no_grad():
        cond = encode(pipe, prompts, scale)
    chain = sample_chain(
        guided_predictor(pipe.unet, scale),
        reverse_process(pipe.scheduler, 4, eta=1.0),
        cond,
        LATENT,
        generators(1, 2),
    )
    torch.testing.assert_close(chain.sample, latents, rtol=1e-5, atol=1e-5)
    assert latents.std() > 0.1
