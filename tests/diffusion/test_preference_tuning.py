"""Learning from pairs: the update by hand, draws that a pair shares, what it takes to improve."""

from __future__ import annotations

import copy
import math

import pair_files
import pytest
import torch
import torch.nn.functional as F
from family_images import SIZES
from tiny_families import FAMILIES, tiny
from tiny_models import guided_predictor, tiny_sd

from diffusion.config import FinetuneConfig
from diffusion.errors import InputError
from diffusion.forward import draw_times, forward_process
from diffusion.loading import prepare_pipeline
from diffusion.objectives.dpo import DPO, accuracy
from diffusion.pipelines import ImagePolicy
from diffusion.preference_tuning import PreferenceTuner
from diffusion.preferences.source import load_pairs
from diffusion.recommended import PUBLISHED, recommended
from diffusion.selfcheck import self_check
from diffusion.streams import DRAWS, generators


def config(**more) -> FinetuneConfig:
    small = {
        "algorithm": "dpo",
        "prompts_per_epoch": 4,
        "draws": 2,
        "learning_rate": 1e-3,
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "rollout_batch": 4,
        "micro_batch": 3,
        "inner_steps": 1,
        "beta": 500.0,
    }
    return FinetuneConfig(**(small | more)).resolved(PUBLISHED)


def tuner_of(path, pipe=None, scale=1.0, name="sd", train="lora", held_out=0.3, **more):
    cfg = config(guidance_scale=scale, **more)
    policy = ImagePolicy(
        prepare_pipeline(tiny_sd() if pipe is None else pipe),
        guidance_scale=scale,
        lora_rank=4,
        lora_targets="all",
        train=train,
        **SIZES[name],
    )
    return PreferenceTuner(policy, None, load_pairs(str(path), held_out_fraction=held_out), cfg)


def gradients(tuner) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and gradients of an epoch, whose step is not taken."""
    seen = {}

    def record() -> float:
        seen.update({n: p.grad.clone() for n, p in tuner.policy.trainable().items()})
        return 0.0

    tuner.trained.step = record
    return tuner.run_epoch(), seen


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return pair_files.pair_file(tmp_path_factory.mktemp("pairs"), 12)


def test_the_gradient_is_that_of_the_published_loss(path):
    """Written apart: both images of a pair noised with one (t, eps), without guidance."""
    tuner = tuner_of(path, scale=4.0, train="full", prompts_per_epoch=3)
    policy, cfg = tuner.policy, tuner.config
    with torch.no_grad():  # away from the reference, where every margin is 0
        noise = torch.Generator().manual_seed(0)
        for parameter in policy.denoiser.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=noise)
    unet = copy.deepcopy(policy.denoiser).requires_grad_(True)
    reference = policy._frozen
    pairs = list(tuner.prompts.train_pairs(0, 3, cfg.seed))
    pipe, process = policy.pipe, forward_process(policy.pipe.scheduler)
    streams = generators(cfg.seed, DRAWS, 0, range(6))
    shared = draw_times(process, (4, 8, 8), [streams[:2], streams[2:4], streams[4:]])
    losses = []
    for i, pair in enumerate(pairs):
        images = pair.images((16, 16)) * 2 - 1
        with torch.no_grad():
            z = pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor
            text = pipe.encode_prompt([pair.prompt], "cpu", 1, False)[0].expand(2, -1, -1)
        for s in range(2):
            t, eps = shared.at[i, s], shared.noise[i, s]
            alpha = pipe.scheduler.alphas_cumprod[t]
            x_t = alpha.sqrt() * z + (1 - alpha).sqrt() * eps
            both = []
            for net in (unet, reference):
                said = guided_predictor(net, 1.0)(x_t, t.expand(2), {"text": text})
                both.append((said - eps).square().mean((1, 2, 3)))
            won, lost = both[0] - both[1]
            losses.append(-F.logsigmoid(-cfg.beta * (won - lost)))
    expected = torch.stack(losses).mean()
    expected.backward()
    metrics, seen = gradients(tuner)
    assert metrics["dpo/loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert metrics["dpo/loss"] != pytest.approx(math.log(2), rel=1e-3)
    for name, parameter in unet.named_parameters():
        largest = float(parameter.grad.abs().max())
        torch.testing.assert_close(seen[name], parameter.grad, atol=1e-4 * largest + 1e-9, rtol=0)


@pytest.mark.slow
def test_training_improves_the_implicit_accuracy(path):
    """On the pairs themselves: for others it takes a network that knows something."""
    tuner = tuner_of(path, prompts_per_epoch=6, beta=2000.0, held_out=0.0, draws=1)
    before = tuner.judge(5)
    assert before["implicit_accuracy"] == 0.5 and before["implicit_margin"] == 0.0
    assert before == tuner.judge(5)
    first = tuner.run_epoch()
    assert first["dpo/loss"] == pytest.approx(math.log(2)) and first["dpo/accuracy"] == 0.5
    for _ in range(11):
        tuner.run_epoch()
    after = tuner.judge(12)
    assert after["implicit_accuracy"] >= 0.8 and after["implicit_margin"] > 0
    assert after["pairs"] == 12


def test_batches_change_nothing(path):
    one, other = tuner_of(path), tuner_of(path, rollout_batch=64, micro_batch=64)
    for tuner in (one, other):
        with torch.no_grad():
            for parameter in tuner.policy.trainable().values():
                parameter += 0.01
    mine, theirs = one.judge(3), other.judge(3)
    assert mine["implicit_margin"] == pytest.approx(theirs["implicit_margin"], rel=1e-3)
    a, b = gradients(one)[1], gradients(other)[1]
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=1e-4 * float(value.abs().max()), rtol=0)


@pytest.mark.parametrize("train", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_resumed_tuner_goes_on_bit_for_bit(path, train):
    straight = tuner_of(path, train=train)
    for _ in range(2):
        straight.run_epoch()
    first, second = tuner_of(path, train=train), tuner_of(path, train=train)
    first.run_epoch()
    tensors, values = first.state()
    second.load_state({k: v.clone() for k, v in tensors.items()}, values)
    second.run_epoch()
    mine, theirs = straight.state()[0], second.state()[0]
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert straight.judge(3) == second.judge(3)


# Flow families see another process, SDXL the sizes, Flux the guidance as an input.
QUICK = ("sd3",)


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n != "sd"],
)
def test_every_family_learns_from_pairs(name, path):
    train = "full" if name == "pixart" else "lora"
    tuner = tuner_of(path, tiny(name), 3.0, name, train, prompts_per_epoch=2, draws=1)
    assert self_check(tuner).metrics["check/implicit_margin"] == 0
    before = {n: p.detach().clone() for n, p in tuner.policy.trainable().items()}
    for _ in range(2):
        metrics = tuner.run_epoch()
        assert math.isfinite(metrics["dpo/loss"]) and metrics["train/gradient_norm"] > 0
    assert any(not torch.equal(before[n], p) for n, p in tuner.policy.trainable().items())
    assert tuner.policy.guidance_scale == 3.0
    judged = tuner.judge(2)
    assert judged["implicit_margin"] != 0


def test_an_evaluation_draws_only_where_something_scores(path):
    tuner = tuner_of(path)
    result = tuner.evaluate(2)
    assert result.prompts == [] and len(result.images) == 0 and result.rewards == {}
    assert result.measures["implicit_accuracy"] == 0.5
    scored = PreferenceTuner(
        tuner.policy, lambda images, prompts: images.mean((1, 2, 3)), tuner.prompts, tuner.config
    )
    result = scored.evaluate(2)
    assert len(result.images) == len(result.prompts) == 2 and result.rewards["reward"].shape == (2,)
    assert set(result.prompts) <= set(tuner.prompts.held_out(20, 0))


def test_other_objectives_are_refused(path):
    with pytest.raises(InputError, match="--algorithm nft learns from images that it draws"):
        tuner_of(path, algorithm="nft")


def test_ties_count_half():
    margin = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-1.0, 0.5], [0.0, 3.0]])
    assert accuracy(margin) == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert math.isnan(accuracy(torch.zeros(0, 2)))
    assert DPO(beta=3.0).beta == 3.0


def test_nothing_is_recommended_that_pairs_do_not_need():
    for model in ("tiny", "other/model"):
        found = recommended(model, "dpo", pairs=True)
        assert found["reward"] is None and found["prompts"] is None and found["epochs"] >= 10
    assert recommended("tiny", "dpo")["reward"] == "attributes"


def test_dropout_acts_on_pairs_and_is_of_the_epoch(path):
    def trained(rate: float) -> torch.Tensor:
        tuner = tuner_of(path, lora_dropout=rate)
        for _ in range(2):
            tuner.run_epoch()
        return torch.cat([p.detach().flatten() for p in tuner.policy.trainable().values()])

    thinned = trained(0.5)
    assert torch.equal(thinned, trained(0.5)) and not torch.equal(thinned, trained(0.0))
