"""What a run draws to learn a value from: how much is kept, and when other prompts are asked."""

from __future__ import annotations

import pytest
import torch
from family_images import policy_of
from tiny_rewards import brightness

from diffusion.errors import InputError
from diffusion.prompts.sources import load_prompts
from diffusion.values.config import ImageValueConfig
from genpol.runs.run import Run
from genpol.training.image_chains import ImageChains

CONFIG = ImageValueConfig(num_prompts=9, images_per_prompt=2, num_held_out=1, other_prompts=3)
PROMPTS = ["a cat", "a dog!", "two owls", "a red hen", "a brown cow"]
calls = 0


def counted(images, prompts):
    """Depends on the prompt, as its length in hundredths of the brightness."""
    global calls
    calls += len(images)
    lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
    return brightness(images, prompts) * (1 + lengths / 100)


def blind(images, prompts):
    global calls
    calls += len(images)
    return brightness(images, prompts)


def chains(reward, *, memory_gb: float = 1.0, config: ImageValueConfig = CONFIG) -> ImageChains:
    policy = policy_of("sd")
    prompts = load_prompts(PROMPTS, held_out_fraction=0.2)
    return ImageChains(
        policy, policy.process(4), reward, prompts, config, memory_gb=memory_gb, batch=4
    )


def test_fewer_prompts_than_asked_for_are_drawn_once():
    made = chains(blind)
    count = len(made.train.prompts)
    assert set(made.train.prompts + made.held_out.prompts) <= set(PROMPTS)
    assert not set(made.train.prompts) & set(made.held_out.prompts)
    assert 1 < count < 5 and made.images == 2 * (count + 1)
    assert made.remarks == [
        f"a list of 5 has {count} training prompts, fewer than --num-prompts 9: all of them are "
        "drawn once"
    ]
    assert made.train.others.shape == (count, 2, 3)
    own = torch.arange(count)[:, None, None]
    assert (made.train.others != own).all() and made.train.others.max() < count


def test_states_that_do_not_fit_are_left_out():
    one = 2 * 4 * 8 * 8 * 2 / 2**30  # x and x0_hat of an image, in bf16
    images = chains(blind).images
    made = chains(blind, memory_gb=3.5 * images * one)
    assert made.train.states.shape[1] == made.held_out.states.shape[1] == 3
    assert "3 states of each chain are kept instead of 5" in made.remarks[1]
    with pytest.raises(InputError, match=f"two states of each of {images} images need"):
        chains(blind, memory_gb=1.5 * images * one)


@pytest.mark.parametrize("reward", [counted, blind])
def test_other_prompts_are_asked_where_they_tell_something(reward, tmp_path, monkeypatch):
    global calls
    monkeypatch.setattr("genpol.training.image_chains.IMAGES", 4)  # two prompts a round
    made, calls = chains(reward), 0
    with Run(tmp_path / "run", {}, command="value", wandb="disabled") as run:
        parts = made.draw(run, lambda: False, lambda images: None)
        assert parts is not None
        train, held_out = (part.examples for part in parts)
        first = calls
        again = chains(reward).draw(run, lambda: False, lambda images: None)  # from the disk
        assert calls == first and again is not None
        for name, tensor in train.tensors().items():
            assert torch.equal(tensor, again[0].examples.tensors()[name]), name
    count = len(train.reward)
    asked = 3 * count * 2 if reward is counted else 3 * 4  # of the first round, which told
    assert first == made.images + asked
    assert train.other.shape == (count, 2, 3 if reward is counted else 0)
    assert held_out.other.shape == (len(held_out.reward), 2, 0)
    if reward is counted:
        lengths = torch.tensor([float(len(p)) for p in made.train.prompts])
        own = (1 + lengths / 100)[:, None, None]
        other = 1 + lengths[train.other] / 100
        torch.testing.assert_close(
            train.other_reward, train.reward[..., None] / own * other, rtol=1e-4, atol=1e-5
        )
