"""Draws the images of an epoch or of an evaluation: each process those rows that it holds.

Every draw is a function of (seed, purpose, epoch, index), so neither batch sizes nor the number of
processes change an image.

Shapes: N prompts, M = N x copies images, prompt-major; H of them are held by this process, and are
of P prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffusion.chain import Condition, DenoisingChain, Predictor
from diffusion.config import FinetuneConfig
from diffusion.fitting import Fitting
from diffusion.loading import DTYPES
from diffusion.pipelines import ImagePolicy
from diffusion.process import ReverseProcess
from diffusion.ranks import Ranks, Share
from diffusion.rollout import draw_chains
from diffusion.scores import take
from diffusion.streams import WINDOW, generators

Tick = Callable[[], bool]


class Stopped(Exception):
    """The caller asked to stop while images were being drawn; weights are as after `epoch`."""


@dataclass(frozen=True)
class Dealt:
    """Images of prompts among the processes.

    Attributes:
        share: who holds which of the M images.
        prompts: (P,) the prompts of the images that this process holds, by number.
        group: (H,) each held image's place in `prompts`.
    """

    share: Share
    prompts: Tensor
    group: Tensor

    def kept(self, rows: Tensor) -> tuple[Dealt, Tensor]:
        """The same of some images (ascending), and which (H',) of the held ones stay."""
        share, stay = self.share.kept(rows)
        return Dealt(share, self.prompts, self.group[stay]), stay


def deal(ranks: Ranks, prompts: int, copies: int, *, whole: bool = False) -> Dealt:
    """`copies` images of each of `prompts` prompts; `whole`: those of a prompt stay together."""
    share = ranks.share(prompts * copies, copies if whole else 1)
    wanted, group = (share.held // copies).unique(return_inverse=True)
    return Dealt(share, wanted, group)


@dataclass(frozen=True)
class Drawn:
    """Chains (H) with the conditioning (P rows) of their prompts."""

    chain: DenoisingChain
    cond: Condition
    dealt: Dealt

    @property
    def share(self) -> Share:
        """Who holds which image."""
        return self.dealt.share

    def each(self) -> Condition:
        """The conditioning of every held image (H rows)."""
        return take(self.cond, self.dealt.group)

    def kept(self, rows: Tensor) -> Drawn:
        """Some of the images, ascending."""
        dealt, stay = self.dealt.kept(rows)
        return Drawn(self.chain.rows(stay), self.cond, dealt)


@dataclass(frozen=True)
class Drawing:
    """How a run draws: the policy, its settings, the processes that share the work, and how many
    images each draws at a time."""

    policy: ImagePolicy
    config: FinetuneConfig
    ranks: Ranks
    batch: Fitting

    def process_of(self, epoch: int) -> ReverseProcess:
        """How the images of an epoch are drawn: with a window, which steps draw noise is drawn."""
        cfg, window = self.config, None
        assert cfg.num_inference_steps is not None  # the configuration is resolved
        if cfg.sde_window is not None and self.policy.family.flow:
            # Not the last step: on nearly clean images the log-prob reacts too strongly.
            last = max(cfg.num_inference_steps - 1 - cfg.sde_window, 0)
            first = int(np.random.default_rng([cfg.seed, WINDOW, epoch]).integers(last + 1))
            window = (first, first + cfg.sde_window)
        return self.policy.process(
            cfg.num_inference_steps,
            eta=cfg.eta,
            sampler=cfg.sampler,
            noise_level=cfg.noise_level,
            window=window,
        )

    def process_of_evaluations(self) -> ReverseProcess:
        """How held-out images are drawn: flow models by the ODE."""
        cfg = self.config
        assert cfg.num_inference_steps is not None
        return self.policy.process(cfg.num_inference_steps, eta=cfg.eta, sampler="ode")

    def draw(
        self,
        prompts: list[str],
        copies: int,
        purpose: int,
        epoch: int,
        process: ReverseProcess,
        *,
        predict: Predictor,
        reference: Predictor | None = None,
        tick: Tick | None = None,
        path: bool = True,
    ) -> Drawn:
        """Chains of every prompt `copies` times.

        Args:
            purpose, epoch: of the random streams.
            predict, reference: whose chains, and what they are scored by as well.
            tick: called between batches, equally often on every process.
            path: whether every x is kept, or the sample alone.

        Raises:
            Stopped: `tick` returned True.
        """
        cfg, policy, dealt = self.config, self.policy, deal(self.ranks, len(prompts), copies)
        cond = policy.encode([prompts[i] for i in dealt.prompts.tolist()])
        held = dealt.share.held

        def after() -> None:
            if tick is not None and tick():
                raise Stopped

        chain = draw_chains(
            predict,
            process,
            cond,
            dealt.group,
            policy.latent_shape,
            lambda which: generators(cfg.seed, purpose, epoch, held[which].tolist()),
            self.batch,
            reference=reference,
            reference_weights=policy.as_reference,
            storage_dtype=DTYPES[cfg.storage_dtype],
            device=policy.device,
            in_host=cfg.chains_on != "device",
            path=path,
            after=after,
        )
        return Drawn(chain, cond, dealt)


def scored_as_drawn(chain: DenoisingChain) -> DenoisingChain:
    """A chain whose reference is what drew it."""
    kl = torch.zeros_like(chain.log_prob)
    return replace(chain, log_prob_ref=chain.log_prob.clone(), kl=kl)
