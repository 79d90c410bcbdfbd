"""`Steered` steers pictures: a pipeline as a policy, a reward as a critic."""

from __future__ import annotations

import torch

from genpol.steering.pictures import Judged, Pictures, as_images, observations
from genpol.steering.select import argmax, random_choice, softmax
from genpol.steering.steered import Steered
from offline.types import Critic, Policy

SIZE = (6, 5)
PROMPTS = ["dark", "bright"]


def draw(prompts: list[str], seeds: list[int]) -> torch.Tensor:
    """Noise by its seed, brighter for one prompt."""
    rows = [torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(s)) for s in seeds]
    lift = torch.tensor([0.5 * (p == "bright") for p in prompts]).view(-1, 1, 1, 1)
    return (torch.stack(rows) + lift).clamp(0, 1)


def brightness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    assert all(p in PROMPTS for p in prompts)
    return images.mean((1, 2, 3))


def steered(k: int, select=None) -> Steered:
    judged = Judged(brightness, PROMPTS, SIZE)
    return Steered(Pictures(draw, PROMPTS, SIZE), judged, k, select or argmax(), check=False)


def test_they_are_a_policy_and_a_critic():
    assert isinstance(Pictures(draw, PROMPTS, SIZE), Policy)
    assert isinstance(Judged(brightness, PROMPTS, SIZE), Critic)


def test_argmax_is_the_best_of_k_bit_for_bit():
    obs = observations([1, 0], [10, 20])
    found = steered(4).decide(obs, None)
    for i, (prompt, first) in enumerate([("bright", 10), ("dark", 20)]):
        own = draw([prompt] * 4, list(range(first, first + 4)))
        scores = brightness(own, [prompt] * 4)
        assert torch.equal(found.scores[i], scores)
        assert int(found.chosen[i]) == int(scores.argmax())
        assert torch.equal(as_images(found.action)[i], own[scores.argmax()])
    assert found.chosen.tolist() != [0, 0]
    assert found.action.shape == (2, 3 * 6, 5)


def test_one_candidate_is_the_plain_picture():
    obs = observations([0], [3])
    assert torch.equal(as_images(steered(1).decide(obs, None).action), draw(["dark"], [3]))


def test_every_rule_serves_pictures():
    obs, generator = observations([0, 1], [0, 100]), torch.Generator().manual_seed(0)
    best = brightness(as_images(steered(16).decide(obs, None).action), PROMPTS)
    for rule in (softmax(0.0), softmax(1e-6)):
        found = steered(16, rule).decide(obs, generator)
        assert torch.equal(brightness(as_images(found.action), PROMPTS), best)
    blind = steered(16, random_choice()).decide(obs, generator)
    assert (brightness(as_images(blind.action), PROMPTS) < best).all()
