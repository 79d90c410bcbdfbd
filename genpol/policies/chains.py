"""Our diffusion and flow policies as denoising policies, in the terms of `diffusion/`.

An action chunk is drawn by the same kind of chain as a picture, so what fine-tunes image pipelines
by reward fine-tunes these policies, too. `PolicyChains` makes of a `ChunkPolicy`

    predict    the network on (x_t, t, condition), as `diffusion.chain` asks for it
    process    how chains are drawn and scored: the `ReverseProcess` of the policy's own sampler, or
               a noisy sampler of `diffusion.flow` for a flow, which draws no noise by itself
    forward    how finished chunks are noised, for objectives that need no densities
    condition  observations, encoded once

The time t that the network is given is the head's own. A diffusion head has t = k / T at its step
k, and epsilon as output. A flow head runs from noise at t = 0 to actions at t = 1 and says
action - noise; `diffusion.flow` runs from 1 to 0 and takes noise - action, which is what `predict`
says.

What is trained is all but the encoder of observations: vectors are standardised there, which has
nothing to train, and images go through networks that stay as they were cloned. So observations are
encoded once, and gradients reach everything that is trained.

A chunk is executed clipped to what the environment accepts (`action`). What is scored is the chain
before that clip, so densities are those of the chain, and a reward should be that of the clipped
chunk. A diffusion head clips its estimate of the action at every step, and its densities know it.

Shape legend: N rows (decisions, or noisy copies of them), T denoising steps, H action chunk,
A action dimension, D = H * A, E numbers of an encoded observation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from diffusion.chain import Condition, Predictor
from diffusion.flow import flow_table
from diffusion.forward import ForwardProcess
from diffusion.process import ReverseProcess
from genpol.policies.diffusion import DiffusionHead, action_process
from genpol.policies.policy import ChunkPolicy
from offline.errors import InputError
from offline.types import Obs

SAMPLER, NOISE_LEVEL = "cps", 0.5  # of a flow's chains
FLOW_TIMES = 1000  # that a flow's forward process is tabulated at


class PolicyChains:
    """A `ChunkPolicy` with a diffusion or a flow head as a denoising policy.

    Args:
        policy: whose weights are asked, and trained where they require gradients.
        sampler: of a flow's chains, one of `diffusion.flow.SAMPLERS`; a diffusion policy has its
            own.
        noise_level: of that sampler; 0 is the flow itself, which has no densities.

    Raises:
        InputError: a policy that does not denoise, an unknown sampler, or a noise level out of
            range.
    """

    def __init__(
        self, policy: ChunkPolicy, *, sampler: str = SAMPLER, noise_level: float = NOISE_LEVEL
    ) -> None:
        require_chain(policy)
        self.policy, self.sampler, self.noise_level = policy, sampler, noise_level
        self.flow = policy.kind == "flow"
        self.process: ReverseProcess
        """How chains are drawn and scored: T steps, the last of which may have no density."""
        if self.flow:
            self.process = flow_steps(policy.head.num_steps, sampler, noise_level)
        else:
            self.process = diffusion_steps(policy.head)
        self.shape = (policy.head.dim,)
        """Of one x: (D,)."""

    @property
    def device(self) -> torch.device:
        return next(self.policy.head.parameters()).device

    def frozen(self) -> PolicyChains:
        """The same of a copy of the weights as they are now, without gradients: a reference."""
        held = copy.deepcopy(self.policy).eval().requires_grad_(False)
        return PolicyChains(held, sampler=self.sampler, noise_level=self.noise_level)

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in the policy: all but the encoder of observations."""
        named = self.policy.named_parameters()
        return {name: weight for name, weight in named if not name.startswith("encoder.")}

    def require_densities(self, who: str) -> None:
        """Check that denoising steps draw noise, so that they can be scored.

        Args:
            who: needs them, as in "--agent prdp".

        Raises:
            InputError: they draw none, or the policy is deployed by a sampler that draws none.
        """
        without = "objectives on finished chunks (prdp-forward, nft, awm) need none"
        if not self.flow and self.policy.head.sampler == "ddim":
            raise InputError(
                f"{who} scores denoising steps, and this policy samples by ddim, whose steps draw "
                f"no noise: {without}; or clone one with --sampler ddpm"
            )
        if not bool(self.process.stochastic.any()):
            raise InputError(
                f"{who} scores denoising steps, which draw no noise with --sampler "
                f"{self.sampler} and --noise-level {self.noise_level:g} in "
                f"{self.process.num_steps} steps: pass a --noise-level above 0; {without}"
            )

    # -- the condition

    @torch.no_grad()
    def condition(self, obs: Obs) -> Condition:
        """What N observations are to the network, one row each: encoded, and with numbers of their
        own, by which rows that were gathered from one observation share its passes.

        Raises:
            SpecError: a key is missing or has another shape than in training.
        """
        encoding = self.policy.encoder(obs)
        return {"encoding": encoding, "row": torch.arange(len(encoding), device=encoding.device)}

    # -- the network

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """(N, D), the head's times (N,) and a condition of N rows -> the output (N, D).

        Differentiable in the weights. What depends on the observation alone is computed once for
        each, and what depends on observation and time once for each pair.
        """
        head = self.policy.head
        number, at = cond["row"].unique(return_inverse=True)
        features = self.policy.body(cond["encoding"][first_of(at, len(number))])
        times, when = t.unique(return_inverse=True)
        pairs, back = (at * len(times) + when).unique(return_inverse=True)
        embedding = head.conditioner.embed(times.to(features.dtype))
        modulation = head.conditioner(features[pairs // len(times)], embedding[pairs % len(times)])
        output = head.trunk(x_t, modulation[back])
        return -output if self.flow else output

    @torch.no_grad()
    def drawer(self, cond: Condition) -> Predictor:
        """`predict` for drawing whole chains of N different observations: what does not depend on
        x_t is computed here, for all steps together. Its numbers differ in their last bits."""
        head, features = self.policy.head, self.policy.body(cond["encoding"])
        times = self.process.timesteps.to(features)
        embedding = head.conditioner.embed(times)
        modulations = head.conditioner(features, embedding[:, None])  # (T, N, M)

        def predict(x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
            step = (times == t[0]).int().argmax()  # which no GPU is waited for
            output = head.trunk(x_t, modulations.index_select(0, step[None])[0])
            return -output if self.flow else output

        return predict

    # -- the forward process

    @property
    def forward(self) -> ForwardProcess:
        """How finished chunks are noised: a flow at any time, a diffusion policy at its T steps.

        With the weight "elbo" D times the mean over times is a bound of the log density of a chunk
        in nats. A diffusion policy's is that of its own chain; the last step, which has no density,
        has the weight of the one before.
        """
        if self.flow:
            t = torch.arange(1, FLOW_TIMES + 1, dtype=torch.float64) / FLOW_TIMES
            slope = 2 / (t * (1 - t).clamp_min(0.5 / FLOW_TIMES))
            return ForwardProcess((1 - t).float(), 1 - t, t, slope, "flow")
        own = self.policy.head.process  # of the ancestral chain, whatever it is sampled by
        per_step = torch.where(own.stochastic, own.sensitivity.square(), torch.zeros_like(own.std))
        if own.num_steps > 1:
            per_step[~own.stochastic] = per_step[own.stochastic][-1]
        a, s, slope = own.sqrt_alpha, own.sqrt_noise, own.num_steps * per_step
        times, a, s, slope = (v.flip(0) for v in (self.process.timesteps, a, s, slope))
        return ForwardProcess(times, a, s, slope, "epsilon")

    # -- actions

    def chunk(self, x: Tensor) -> Tensor:
        """Finished chains (N, D) -> chunks (N, H, A), normalised by its spec, not clipped."""
        return x.unflatten(-1, (self.policy.spec.chunk, self.policy.spec.dim))

    def action(self, x: Tensor) -> Tensor:
        """Finished chains (N, D) -> chunks (N, H, A) as they are executed: clipped to [-1, 1] where
        actions lie there. A policy of other bounds is clipped by whoever executes it."""
        return self.chunk(x.clamp(-1, 1) if self.policy.bounded else x)


def joined(conditions: Sequence[Condition]) -> Condition:
    """Conditions of `PolicyChains.condition` one after the other, as one with numbers of its own
    for each observation."""
    encoding = torch.cat([cond["encoding"] for cond in conditions])
    return {"encoding": encoding, "row": torch.arange(len(encoding), device=encoding.device)}


def first_of(which: Tensor, count: int) -> Tensor:
    """(count,) for each of `count` values one place in `which` (N,) where it stands."""
    places = torch.arange(len(which), device=which.device)
    return which.new_empty(count).scatter_(0, which, places)


def diffusion_steps(head: DiffusionHead) -> ReverseProcess:
    """A diffusion head's T steps, ancestral or DDIM as it samples; times are the head's."""
    times = head.times.cpu().flip(0)  # steps are noisiest first
    if head.sampler == "ddpm":
        return replace(head.process, timesteps=times)
    own = action_process(head.num_steps, "ddim", head.clip)
    # The head derives eps anew from the clipped estimate: eps = (x_t - a x_0) / s.
    return replace(
        own,
        timesteps=times,
        c_x0=own.c_x0 - own.c_eps * own.sqrt_alpha / own.sqrt_noise,
        c_xt=own.c_xt + own.c_eps / own.sqrt_noise,
        c_eps=torch.zeros_like(own.c_eps),
    )


def flow_steps(steps: int, sampler: str, noise_level: float) -> ReverseProcess:
    """A flow's T Euler steps, with noise; times are the head's, from 0 on."""
    times = torch.arange(steps, dtype=torch.float32) / steps
    sigmas = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    return flow_table(sigmas, times, sampler, noise_level)


def require_chain(policy: object) -> None:
    """Check that a policy denoises, step by step.

    Raises:
        InputError: a black box, or one of our policies of another kind.
    """
    if not isinstance(policy, ChunkPolicy):
        raise InputError(
            f"{type(policy).__name__} cannot be fine-tuned by reward: its denoising steps are "
            "not seen from outside. Pass a diffusion or flow policy of `genpol clone`, or steer it "
            "(`genpol steer`)"
        )
    if policy.kind not in ("diffusion", "flow"):
        raise InputError(
            f"a {policy.kind} policy has no denoising steps to fine-tune by reward: pass a "
            "diffusion or flow policy (`genpol clone --policy flow`)"
        )
