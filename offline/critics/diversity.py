"""The diversity term of EDAC, as RAVL uses it: it penalises aligned action gradients of heads.

    1 / (E - 1) * sum_{i != j}  < g_i, g_j >,   g_e = grad_a Q_e(s, a) / |grad_a Q_e(s, a)|

An et al. (EDAC, arXiv 2110.01548, eq. 4 and algorithm 1): the minimum over heads is pessimistic
where heads differ, yet near the data they differ little in directions in which their action
gradients agree; lowering the mean cosine makes ten heads do the work of hundreds. Sims et al.
(RAVL, arXiv 2402.12527) apply it to truncated model rollouts: these end in edge-of-reach states,
which are bootstrapped from and never trained on, so that an overestimate there is never corrected
and spreads, however exact the model; the minimum over diverse heads keeps values there low.

Theirs adds it to sum_e (Q_e - y)^2, ours to half of that: the same balance is half their weight.

Shape legend: E heads, B batch, H action chunk, A action dimension, N hidden units.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from offline.critics.td import Penalty
from offline.critics.value import ValueFunction
from offline.data.batch import Batch


def diversity(weight: float) -> Penalty:
    """The term at the batch's actions, times `weight`, as a `Penalty`.

    Its metric critic/gradient_cosine is the mean cosine over pairs of heads, in [-1, 1].
    """

    def penalty(value: ValueFunction, batch: Batch, generator: Generator) -> tuple[Tensor, dict]:
        with torch.no_grad():
            features = value.encoder(batch.obs)
        gradients = action_gradients(value, features, batch.act)
        cosine = mean_cosine(gradients)
        return weight * value.ensemble * cosine, {"critic/gradient_cosine": cosine.detach()}

    return penalty


def mean_cosine(gradients: Tensor) -> Tensor:
    """(E, B, D) -> (): the mean over rows and pairs of different heads.

    Times E this is the term above. All pairs cost no more than their sum:
    sum_{i != j} <g_i, g_j> = |sum_i g_i|^2 - sum_i |g_i|^2.
    """
    heads = len(gradients)
    unit = F.normalize(gradients, dim=-1, eps=1e-10)
    pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, 2))
    return pairs.mean() / (heads * (heads - 1))


def action_gradients(value: ValueFunction, features: Tensor, act: Tensor) -> Tensor:
    """grad_a Q_e(s, a), each head's own: (E, B, H * A), differentiable in the heads' weights.

    Args:
        value: the critic.
        features: (B, F) from its encoder.
        act: (B, H, A).
    """
    with torch.enable_grad():
        # One backward pass for all heads: each sees its own slice of the first layer's output.
        projected = value.heads.project(features)
        q = value.score(projected, act[:, None])
        (gradient,) = torch.autograd.grad(q.sum(), [projected], create_graph=True)
        gradient = gradient.unflatten(-1, (value.ensemble, -1)).transpose(0, 1)
        return torch.bmm(gradient, value.heads.first_layer()[1])
