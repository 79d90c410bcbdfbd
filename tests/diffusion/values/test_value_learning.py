"""Learning a value: a known function to a threshold, what a step depends on, every family."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from family_images import policy_of
from tiny_families import FAMILIES
from tiny_rewards import brightness

from diffusion.errors import InputError
from diffusion.fitting import Fitting
from diffusion.streams import VALUE_ROLLOUT
from diffusion.values.chains import Examples, draw_round, others_of, states_of
from diffusion.values.config import ImageValueConfig
from diffusion.values.image_value import ValueAbout, load_value
from diffusion.values.learning import Part, ValueLearning
from diffusion.values.levels import levels
from diffusion.values.text import kept, text_sizes

LEVELS = torch.tensor([0.9, 0.5, 0.1, 0.0])
ABOUT = ValueAbout("StableDiffusionPipeline", (2, 4, 4), {"text": 6}, "a known one")
CONFIG = ImageValueConfig(steps=60, batch_size=32, channels=16, blocks=1, lr=6e-3)


def known(prompts: int, seed: int, *, others: int = 0, images: int = 8) -> Part:
    """States of x_0 under noise, whose reward is its mean if the prompt says so, else minus it."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(prompts, 3, 6, generator=g)
    text[:, :, :2] = text[:, :1, :2]  # every token knows
    sign = (text[:, 0, 0] - text[:, 0, 1]).sign()
    x0 = torch.randn(prompts, images, 1, 2, 1, 1, generator=g).expand(-1, -1, 4, -1, 4, 4)
    noise = torch.randn(x0.shape, generator=g)
    level = LEVELS[:, None, None, None]
    x = (1 - level) * x0 + level * noise
    content = x0[:, :, 0, 0, 0, 0]
    other = others_of(images, others, prompts, seed, range(prompts))
    return Part(
        Examples(
            x.bfloat16(),
            torch.where(torch.arange(4)[:, None, None, None] > 0, x0, 0 * x0).bfloat16(),
            torch.arange(4).expand(prompts, -1).clone(),
            sign[:, None] * content,
            other,
            sign[other] * content[..., None],
        ),
        {"text": text},
        LEVELS,
    )


def learnt(learning: ValueLearning, steps: int = CONFIG.steps) -> list[dict[str, float]]:
    for step in range(steps):
        learning.update(step)
    return learning.judged()


@pytest.mark.slow
def test_a_known_reward_is_learnt_for_prompts_that_were_not_seen():
    rows = learnt(ValueLearning(ABOUT, CONFIG, known(64, 0, others=4), known(16, 1)))
    ranks = [row["rank_correlation"] for row in rows]
    assert abs(ranks[0]) < 0.5 and min(ranks[1:]) > 0.65
    assert rows[-1]["share_of_best"] > 0.7 and rows[-1]["r2"] > 0.4
    assert [row["level"] for row in rows] == pytest.approx(LEVELS.tolist())


def test_other_prompts_teach_what_a_prompt_has_to_do_with_an_image():
    """Of 12 prompts and two images of each, which alone teach nothing."""
    held_out = known(16, 1)
    with_them, without = (
        learnt(ValueLearning(ABOUT, CONFIG, known(12, 0, others=n, images=2), held_out), 80)
        for n in (8, 0)
    )
    assert with_them[-1]["rank_correlation"] > 0.5 > 0.3 > without[-1]["rank_correlation"]


def test_a_step_is_a_function_of_the_seed_and_its_number():
    part = known(8, 0, others=2)
    one, two, other = (
        ValueLearning(ABOUT, replace(CONFIG, seed=seed), part, part) for seed in (0, 0, 1)
    )
    for learning in (one, two, other):
        learning.update(0)
    two.load_state_dict(deepcopy(one.state_dict()))
    seen = one.update(7), two.update(7), other.update(7)
    assert seen[0] == seen[1] and seen[0]["value/loss"] != seen[2]["value/loss"]
    for a, b in zip(one.average.parameters(), two.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_average_is_what_is_saved_and_judged():
    part = known(8, 0)
    learning = ValueLearning(ABOUT, CONFIG, part, part)
    learning.update(0)
    result = learning.result(SimpleNamespace(step=1, metrics={"value/rank": float("nan")}))
    assert result is learning.average and result.meta["metrics"] == {"value/rank": None}
    reward = part.examples.reward
    assert result.about.mean == pytest.approx(float(reward.mean()))
    assert result.about.std == pytest.approx(float(reward.std()))


def test_a_reward_that_tells_no_image_from_another_is_refused():
    part = known(4, 0)
    part.examples.reward.copy_(torch.arange(4.0)[:, None].expand(-1, 8))
    with pytest.raises(InputError, match="the reward is the same for all 8 images of every prompt"):
        ValueLearning(ABOUT, CONFIG, part, part)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("sd", "flux") else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_every_family_learns_and_is_saved(name, tmp_path):
    policy = policy_of(name, scale=2.0)
    process = policy.process(2, sampler="cps")
    prompts = ["a cat", "a dog!", "two"]
    cond = policy.encode(prompts)
    examples = draw_round(
        policy,
        process,
        brightness,
        prompts,
        cond,
        images=2,
        states=states_of(2, 3, 0, range(3)),
        others=others_of(2, 1, 3, 0, range(3)),
        everything=prompts,
        seed=0,
        purpose=VALUE_ROLLOUT,
        first=0,
        batch=Fitting(8),
    )
    part = Part(examples, kept(cond), levels(process))
    kind = type(policy.pipe).__name__
    about = ValueAbout(kind, policy.latent_shape, text_sizes(cond), "brightness")
    config = ImageValueConfig(channels=8, blocks=1, batch_size=8)
    learning = ValueLearning(about, config, part, part)
    for step in range(2):
        assert learning.update(step)["value/loss"].isfinite()
    learning.average.save(tmp_path)
    value = load_value(tmp_path)
    value.require_fits(policy)
    x = examples.x[:, 0, 1].float()
    args = (x, 0.5, value.text(cond), examples.x0_hat[:, 0, 1].float())
    assert torch.equal(value(*args), learning.average(*args))
    assert value(*args).shape == (3,)
    with pytest.raises(InputError, match="this value is of a .*Pipeline, and the pipeline is a"):
        load_value(_renamed(learning.average, tmp_path / "other")).require_fits(policy)
    value.about = replace(value.about, latent_shape=(1, 2, 3))
    with pytest.raises(InputError, match=r"of latents \(1, 2, 3\), and the pipeline's are"):
        value.require_fits(policy)


def _renamed(value, folder):
    value.about = replace(value.about, pipeline="AnotherPipeline")
    return value.save(folder)
