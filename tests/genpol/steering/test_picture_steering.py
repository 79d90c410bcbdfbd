"""Steered pictures beside other uses of the same evaluations, composed values, and the page."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny_sd
from tiny_values import tiny_value

from diffusion.errors import InputError
from diffusion.pipelines import ImagePolicy
from diffusion.steered_chain import Stage
from genpol.reports.page import page
from genpol.steering.picture_arms import Comparison, drawn
from genpol.steering.picture_chains import PictureChains, joined, selection
from genpol.steering.picture_page import TITLE, Steering, equal_arms, score_rows, steering_panels
from genpol.steering.picture_values import PictureValues, PredictedReward

PROMPTS = ["a cat", "two owls", "a <b>red</b> fox"]


@pytest.fixture(scope="module")
def policy() -> ImagePolicy:
    return ImagePolicy(tiny_sd(), guidance_scale=1.0, train="nothing")


def brightness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean((1, 2, 3))


def darkness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return -images.mean((1, 2, 3))


def chains(policy, values, k=4, at=(0.5, 0.25), temperature=None, batch=64) -> PictureChains:
    process = policy.process(4)
    how = selection(process, k, at, temperature=temperature)
    return PictureChains(policy, process, values, k, how, batch=batch)


def test_one_candidate_is_plain_drawing_and_every_survivor_its_seeds(policy):
    values, process = PictureValues([tiny_value(policy)]), policy.process(4)
    one = chains(policy, values, 1).draw(PROMPTS, 5)
    assert torch.equal(one.images, drawn(policy, process, PROMPTS, [5, 6, 7], 64))
    assert one.evaluations == 3 * 4
    four = chains(policy, values).draw(PROMPTS, 5)
    assert four.seeds != [5, 9, 13] and four.evaluations == 3 * (4 * 2 + 2 * 1 + 1)
    plain = drawn(policy, process, PROMPTS, four.seeds, 64)
    torch.testing.assert_close(four.images, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_pictures_do_not_depend_on_how_many_are_drawn_at_a_time(policy, temperature):
    values = PictureValues([tiny_value(policy)])
    at = (0.5, 0.25) if temperature is None else (0.5,)
    whole = chains(policy, values, at=at, temperature=temperature).draw_all(PROMPTS, 0)
    few = chains(policy, values, at=at, temperature=temperature, batch=2)
    assert few.at_once == 2 and chains(policy, values, 64).at_once == 8
    parts = few.draw_all(PROMPTS, 0)
    assert whole.seeds == parts.seeds
    torch.testing.assert_close(whole.images, parts.images, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.chains.values, parts.chains.values, rtol=0, atol=1e-5)
    assert whole.evaluations == parts.evaluations


def test_values_are_weighed_in_standard_deviations_of_their_rewards(policy):
    a, b = tiny_value(policy, 0, std=2.0), tiny_value(policy, 1, std=0.1)
    process, cond = policy.process(4), policy.encode(PROMPTS)
    x, rows = torch.randn(3, *policy.latent_shape), torch.arange(3)
    found = PictureValues([a, b], [1.0, -0.3]).of(PROMPTS, cond, process)(x, 2, rows, x)
    level = float(process.sqrt_noise[2] / (process.sqrt_noise[2] + process.sqrt_alpha[2]))
    own = [v(x, level, v.text(cond), x) for v in (a, b)]
    torch.testing.assert_close(found, own[0] / 2.0 - 0.3 * own[1] / 0.1)
    assert PictureValues([a]).unit == 2.0 and PictureValues([a, b]).unit == 1.0
    zero = PictureValues([a, b], [1.0, 0.0]).of(PROMPTS, cond, process)(x, 2, rows, None)
    torch.testing.assert_close(zero, a(x, level, a.text(cond), None) / 2.0)


def test_the_reward_of_what_a_step_predicts_is_a_value_without_training(policy):
    values, process = PictureValues([PredictedReward(policy, brightness)]), policy.process(4)
    value = values.of(PROMPTS, policy.encode(PROMPTS), process)
    x, x0 = torch.randn(2, 3, *policy.latent_shape)
    rows = torch.arange(3)
    assert torch.equal(value(x, 2, rows, x0), brightness(policy.decode(x0), PROMPTS))
    assert torch.equal(value(x, 4, rows, x0), brightness(policy.decode(x), PROMPTS))
    with pytest.raises(InputError, match="before the first step"):
        value(x, 0, rows, None)
    last = chains(policy, values, k=4, at=(0.0,)).draw(PROMPTS, 0)
    every = torch.stack(
        [brightness(drawn(policy, process, PROMPTS, [k, 4 + k, 8 + k], 64), PROMPTS)
         for k in range(4)]
    )  # fmt: skip
    assert torch.equal(last.chains.candidate, every.argmax(0))  # the best of 4 itself
    assert values.asks_reward and not PictureValues([tiny_value(policy)]).asks_reward


@pytest.mark.parametrize("weights", [[1.0], [1.0, float("nan")], [0.0, 0.0], []])
def test_weights_that_cannot_be_are_refused(policy, weights):
    with pytest.raises(InputError, match="weight"):
        PictureValues([tiny_value(policy)] * 2, weights)


def test_arms_spend_what_steering_spent_and_no_more(policy):
    values = PictureValues([tiny_value(policy)])
    steering = chains(policy, values)
    found = joined([steering.draw(PROMPTS[:2], 0), steering.draw(PROMPTS[2:], 8)])
    comparison = Comparison(
        policy, policy.process, 4, PROMPTS, 0, 4, brightness, {"dark": darkness}, 2
    )
    arms = comparison.arms(found, 1.5, [3.0])
    spent = {arm.name: arm.evaluations for arm in arms}
    assert spent == {
        "one sample": 4,
        "steered": 11,
        "best of 2": 8,
        "best of 4": 16,
        "guidance 3, 5 steps": 10,
    }
    named = {arm.name: arm for arm in arms}
    process = policy.process(4)
    every = torch.stack(
        [
            brightness(drawn(policy, process, PROMPTS, [4 * i + k for i in range(3)], 64), PROMPTS)
            for k in range(4)
        ]
    )
    for k in (2, 4):
        best = every[:k].amax(0).double().numpy()
        np.testing.assert_allclose(named[f"best of {k}"].scores["reward"], best, atol=1e-5)
        assert named[f"best of {k}"].reward_calls == k
    np.testing.assert_allclose(named["one sample"].scores["reward"], every[0], atol=1e-5)
    assert named["one sample"].reward_calls == 0
    assert [arm.name for arm in equal_arms(arms)] == [n for n in spent if n != "best of 4"]
    with policy.at_guidance(3.0):
        guided = brightness(drawn(policy, policy.process(5), PROMPTS, [0, 4, 8], 64), PROMPTS)
    np.testing.assert_allclose(named["guidance 3, 5 steps"].scores["reward"], guided, atol=1e-5)

    about = Steering(PROMPTS, steering.how, found.chains, 1.0, 4, "brightness", "genpol generate")
    html = page(steering_panels(arms, about), TITLE)
    for words in ("best of 4 (dearer)", "a &lt;b&gt;red&lt;/b&gt; fox", "4 → 2", "2 → 1", "dark"):
        assert words in html
    assert html.count("<img") == 3 * 4 and "<b>red" not in html
    rows = score_rows(arms, PROMPTS)
    assert len(rows) == 5 * 3 and set(rows[0]) == {"arm", "prompt", "evaluations", "reward", "dark"}


@pytest.mark.parametrize(
    ("steps", "candidates", "done"),
    [(10, 8, [3, 6, 8]), (2, 8, [1, 2]), (1, 8, [1]), (10, 2, [3]), (10, 3, [3, 6]), (10, 1, [])],
)
def test_usual_stages_fit_short_chains_and_few_candidates(policy, steps, candidates, done):
    stages = selection(policy.process(steps), candidates).stages
    assert [stage.done for stage in stages] == done
    if stages:
        assert stages[-1].keep == 1


def test_stages_are_named_by_what_remains(policy):
    how = selection(policy.process(4), 8, (0.7, 0.3))
    assert how.names == ["0.5", "0.25"] and how.stages == [Stage(2, 3), Stage(3, 1)]
    copied = selection(policy.process(4), 8, (0.5,), temperature=1.0)
    assert copied.names == ["0.5", "0"] and copied.stages == [Stage(2, 8), Stage(4, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sdxl", "sd3", "flux", "flux2_klein", "pixart", "qwen_image", "sana"]
)
def test_every_family_is_steered_and_a_survivor_is_its_seeds_own(name):
    from tiny_families import tiny

    policy = ImagePolicy(tiny(name), guidance_scale=3.0, train="nothing")
    process, prompts = policy.process(4, sampler="ode"), ["a cat", "a hen"]
    values = PictureValues([tiny_value(policy)])
    chains = PictureChains(policy, process, values, 4, selection(process, 4, (0.5, 0.25)), batch=3)
    found = chains.draw(prompts, 0)
    plain = drawn(policy, process, prompts, found.seeds, 3)
    torch.testing.assert_close(found.images, plain, rtol=0, atol=1e-3)
    cost = 2 if policy.family.guided(3.0) else 1
    assert found.evaluations == cost * 2 * (4 * 2 + 2 * 1 + 1 * 1)


def test_a_lora_steers_and_draws_alike(policy, tmp_path):
    """What is steered is the pipeline with its LoRA, whose weights stay as they are."""
    tuned = ImagePolicy(tiny_sd(), guidance_scale=1.0, lora_targets="attention")
    with torch.no_grad():
        for weight in tuned.trainable().values():
            weight.add_(0.05)
    before = {name: p.clone() for name, p in tuned.denoiser.named_parameters()}
    values, process = PictureValues([tiny_value(policy)]), tuned.process(4)
    found = chains(tuned, values).draw(PROMPTS, 0)
    torch.testing.assert_close(
        found.images, drawn(tuned, process, PROMPTS, found.seeds, 64), rtol=0, atol=1e-5
    )
    assert not torch.allclose(found.images, drawn(policy, process, PROMPTS, found.seeds, 64))
    assert all(torch.equal(p, before[n]) for n, p in tuned.denoiser.named_parameters())
