"""Network evaluations are counted at the network, guidance's second ones included."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny

from diffusion.evaluations import Evaluations
from diffusion.pipelines import ImagePolicy


@pytest.mark.parametrize("name", ["sd", "flux", "sd3"])
@pytest.mark.parametrize(("scale", "cost"), [(1.0, 1), (4.0, 2)])
def test_every_image_that_the_network_sees_counts(name, scale, cost):
    policy = ImagePolicy(tiny(name), guidance_scale=scale, train="nothing")
    cost = 1 if policy.family.guided_by_input else cost
    cond = policy.encode(["a cat", "a hen"])
    x, t = torch.zeros(2, *policy.latent_shape), policy.process(4, sampler="ode").timesteps[:1]
    with torch.no_grad():
        with Evaluations(policy.denoiser) as seen:
            policy.predict(x, t.expand(2), cond)
            policy.predict(x[:1], t, {k: v[:1] for k, v in cond.items()})
        policy.predict(x, t.expand(2), cond)  # outside, and not counted
    assert seen.count == 3 * cost


def test_lists_count_by_their_length_and_numbers_do_not():
    class Network(torch.nn.Module):
        def forward(self, scale, images, t=None):
            return images

    net = Network()
    with Evaluations(net) as seen:
        net(2.0, [torch.zeros(1)] * 3)
        net(torch.tensor(1.0), images=torch.zeros(5, 2))
    assert seen.count == 8
