"""Is the critic to be trusted, and what do cheap candidates cost? Asked now and then.

    diagnose/q_bias         mean of Q(s, a) - G over the newest finished experience, G the return
                            that followed; above 0 the critic promises too much
    diagnose/q_bias_std     standard deviation of the same
    diagnose/sigma_layer1.. largest singular value of each layer, over heads
    diagnose/misrank        share of states where the candidate that a few heads choose is not the
                            best by the mean of the other heads
    diagnose/edit_win_rate  share of states where an edit is the best of all candidates
    diagnose/edit_gain      best edit's value above the best unedited candidate's
    diagnose/agreement      share of states where the best of the cheap candidates is the best of
                            the full chain's, from the same noise
    diagnose/regret         value of the full chain's best above that of the one chosen by the cheap
                            candidates, both as the full chain makes them

Shape legend: E heads, B batch, N base candidates, K candidates, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from genpol.agents.expo import EXPO
from offline.critics.lipschitz import layer_sigmas
from offline.critics.td import TDCritic
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.data.mixture import Mixture
from offline.data.replay import Replay
from offline.draws import moved
from offline.learning.agent import Agent
from offline.types import Obs

RECENT, STATES = 1000, 256


def diagnose(agent: Agent, replay: Replay, mixture: Mixture, step: int) -> dict[str, float]:
    """Everything that can be said of an agent's critic now; training is not disturbed.

    Args:
        agent: any; one without a critic is not diagnosed.
        replay: its newest finished episodes tell what values came true.
        mixture: of which states candidates are compared in.
        step: environment steps so far; draws depend on it alone.
    """
    critic = getattr(agent, "critic", None)
    if not isinstance(critic, TDCritic):
        return {}
    value, generator = critic.target, Generator().manual_seed(step)
    device = str(next(value.parameters()).device)
    metrics: dict[str, float] = {}
    for i, sigmas in enumerate(layer_sigmas(value), start=1):
        metrics[f"diagnose/sigma_layer{i}"] = float(sigmas.max())
    if len(replay):
        metrics |= q_bias(value, replay.recent(RECENT).to(device))
    if isinstance(agent, EXPO) and len(mixture):
        obs = mixture.sample(STATES, generator).to(device).obs
        base, count = agent.stateless_base, agent.config.num_candidates
        metrics |= candidates(
            value,
            obs,
            lambda states: base.sample(states, count, generator),
            None if agent.edit is None else agent.edited(generator),
            few=agent.config.subset,
            generator=generator,
        )
        pair = agent.full_and_cheap(obs, generator)
        if pair is not None:
            metrics |= agreement(value, obs, *pair)
    return metrics


@torch.no_grad()
def q_bias(value: ValueFunction, recent: Batch) -> dict[str, float]:
    """How far the mean over heads is from the return that followed; {} without experience."""
    if not len(recent):
        return {}
    gap = value(recent.obs, recent.act[:, None])[..., 0].mean(0) - recent.mc_return
    return {
        "diagnose/q_bias": float(gap.mean()),
        "diagnose/q_bias_std": float(gap.std(correction=0)),
    }


def misrank(scores: Tensor, few: int, generator: Generator) -> float:
    """Share of rows whose best candidate by `few` random heads is not that of the others' mean.

    Args:
        scores: (E, B, K); with E = few there are no others, and the answer is 0.
        few: heads whose minimum chooses.
        generator: draws them.
    """
    ensemble = len(scores)
    if few >= ensemble:
        return 0.0
    order = torch.randperm(ensemble, generator=generator)
    chosen = scores[order[:few]].amin(0).argmax(-1)
    return float((chosen != scores[order[few:]].mean(0).argmax(-1)).float().mean())


@torch.no_grad()
def candidates(
    value: ValueFunction,
    obs: Obs,
    propose: Callable[[Obs], Tensor],
    edit: Callable[[Tensor, Tensor], Tensor] | None,
    *,
    few: int,
    generator: Generator,
) -> dict[str, float]:
    """What the choice among base candidates and edits is worth.

    Args:
        value: scores with all its heads.
        obs: states.
        propose: -> (B, N, H, A).
        edit: encoded observation (B, F) and (B, N, H, A) -> (B, N', H, A).
        few, generator: see `misrank`.
    """
    encoded = value.encoder(obs)
    act = base = moved(propose(obs), encoded.device)  # a black box proposes on the CPU
    if edit is not None:
        act = torch.cat([base, edit(encoded, base)], dim=1)
    scores = value.score(value.heads.project(encoded), act)
    metrics = {"diagnose/misrank": misrank(scores, few, generator)}
    if edit is not None:
        best = scores.mean(0)
        count = base.shape[1]
        gain = best[:, count:].amax(1) - best[:, :count].amax(1)
        metrics["diagnose/edit_win_rate"] = float((gain > 0).float().mean())
        metrics["diagnose/edit_gain"] = float(gain.mean())
    return metrics


@torch.no_grad()
def agreement(value: ValueFunction, obs: Obs, full: Tensor, cheap: Tensor) -> dict[str, float]:
    """Whether cheap candidates lead to the same choice as the full chain's.

    Args:
        value: scores with all its heads.
        obs: states.
        full, cheap: (B, N, H, A) candidates, each pair from the same noise.
    """
    features = value.encode(obs)
    best = value.score(features, full).mean(0)
    chosen = value.score(features, cheap).mean(0).argmax(-1)
    top = best.max(-1)
    lost = top.values - best.gather(1, chosen[:, None])[:, 0]
    return {
        "diagnose/agreement": float((chosen == top.indices).float().mean()),
        "diagnose/regret": float(lost.mean()),
    }
