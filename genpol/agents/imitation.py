"""`Imitation`: a base policy that keeps imitating while everything around it learns by reward.

    minimise  E_{(s, a) ~ batch} [ loss(s, a) ],   average <- average + (1 - d) (policy - average)

over what was really done: what a world model imagines follows choices of this very agent that
nothing has put to the test. The loss is the policy's own (denoising, flow matching, likelihood),
and there is no gradient from any value:
EXPO (arXiv 2507.07986, section 4.1), IDQL (arXiv 2304.10573) and FQL (arXiv 2502.02538) train
their expressive policy by it alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Generator, Tensor, nn

from genpol.agents.config import TrainConfig
from genpol.policies.one_step import NO_LOSS
from genpol.policies.policy import MAX_GRAD_NORM, ChunkPolicy
from offline.data.batch import IMAGINED, Batch
from offline.draws import moved
from offline.errors import InputError, SpecError, did_you_mean
from offline.networks.normalizer import ObsStats
from offline.networks.optimizers import load_optimizer
from offline.spec import ActionSpec
from offline.types import HasGenerators, Policy

Filter = Literal["all", "success"]
P = TypeVar("P", bound=Policy)


class Imitation(Generic[P]):
    """A base policy in training and the average of its weights, which acts.

    Args:
        policy: a `ChunkPolicy` is copied and trained, from the weights it has. Any other policy
            is a black box and stays as it is.
        lr: of AdamW; 0 freezes the policy.
        ema: decay of the average. An average from `genpol clone` is followed on from where that
            left off, so it does not jump to the first, noisy weights.
        weight_decay: of AdamW.
        filter: "success" imitates only transitions of episodes known to have succeeded.

    Raises:
        InputError: a negative rate, a decay outside [0, 1), an unknown filter, or a one-step
            student to train.
    """

    policy: P
    """The newest weights."""
    average: P
    """What acts: in eval mode and without gradients. The same object all along."""

    def __init__(
        self,
        policy: P,
        *,
        lr: float,
        ema: float,
        weight_decay: float = 0.01,
        filter: Filter = "all",
    ) -> None:
        if not lr >= 0:
            raise InputError(f"expected a learning rate of at least 0, received {lr:g}")
        if not 0 <= ema < 1:
            raise InputError(f"expected an EMA decay of at least 0 and below 1, received {ema:g}")
        if filter not in ("all", "success"):
            raise InputError(
                f'unknown filter "{filter}".{did_you_mean(filter, ("all", "success"))}'
            )
        self.ema, self.filter = ema, filter
        self.policy = self.average = policy
        self._trained: ChunkPolicy | None = None
        if not isinstance(policy, ChunkPolicy):
            return
        average = copy.deepcopy(policy).eval().requires_grad_(False)
        self.policy = self.average = average
        self._average = average
        if lr == 0:
            return
        if policy.kind == "student":
            raise InputError(NO_LOSS)
        self.policy = self._trained = copy.deepcopy(policy).train().requires_grad_(True)
        self._weights = list(self._trained.parameters())
        self.steps = int(policy.meta.get("steps") or 0)
        """Gradient steps so far, those of cloning included."""
        self._optimizer = torch.optim.AdamW(
            self._weights, lr=lr, weight_decay=weight_decay, fused=True
        )

    @classmethod
    def of(cls, policy: P, config: TrainConfig) -> Imitation[P]:
        """With the rates and the filter of a configuration."""
        return cls(policy, lr=config.base_lr, ema=config.base_ema, filter=config.base_filter)

    @property
    def frozen(self) -> bool:
        """Whether `update` does nothing."""
        return self._trained is None

    def update(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of the policy on the batch, and of its average.

        Returns:
            base/loss       mean over the rows imitated
            base/grad_norm  before it is clipped
            Both are 0 if the filter keeps no row, and then nothing is changed; {} when frozen.
        """
        if self._trained is None:
            return {}
        obs, act = batch.obs, batch.act
        kept = self._kept(batch)
        if kept is not None:
            rows = kept.nonzero()[:, 0]
            if not len(rows):
                zero = torch.zeros((), device=act.device)
                return {"base/loss": zero, "base/grad_norm": zero}
            rows = moved(rows, act.device)
            obs, act = {key: value[rows] for key, value in obs.items()}, act[rows]
        loss = self._trained.loss(obs, act, generator).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._weights, MAX_GRAD_NORM)
        self._optimizer.step()
        self._average.follow(self._trained, self.steps, self.ema)
        self.steps += 1
        return {"base/loss": loss.detach(), "base/grad_norm": norm.detach()}

    def _kept(self, batch: Batch) -> Tensor | None:
        """(B,) bool, the rows to imitate; None is all of them."""
        if self.filter == "success":
            return batch.success == 1  # NaN is not 1
        if batch.key is None or not (imagined := batch.key == IMAGINED).any():
            return None
        return ~imagined

    def restandardise(self, stats: ObsStats) -> None:
        """Of the policy and its average; a black box stays as it is."""
        if isinstance(self.average, ChunkPolicy):
            self.average.restandardise(stats)
        if self._trained is not None:
            self._trained.restandardise(stats)

    def networks(self) -> list[nn.Module]:
        """The policy and its average; none of a black box that is no network."""
        both = (self.policy, self.average)
        return [policy for policy in both if isinstance(policy, nn.Module)]

    def generators(self) -> list[Generator]:
        """The random streams of a black box that has its own."""
        return self.average.generators() if isinstance(self.average, HasGenerators) else []

    def state_dict(self) -> dict[str, Any]:
        """Weights, average and optimiser; only the weights if frozen, nothing of a black box."""
        if not isinstance(self.average, ChunkPolicy):
            return {}
        state: dict[str, Any] = {"average": self.average.state_dict()}
        if self._trained is not None:
            state["policy"] = self._trained.state_dict()
            state["optimizer"] = self._optimizer.state_dict()
            state["steps"] = self.steps
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; training then goes on bit for bit."""
        if isinstance(self.average, ChunkPolicy):
            self.average.load_state_dict(state["average"])
        if self._trained is not None:
            self._trained.load_state_dict(state["policy"])
            load_optimizer(self._optimizer, state["optimizer"])
            self.steps = int(state["steps"])


def require_learnable(spec: ActionSpec, policy: ChunkPolicy) -> None:
    """Check that `policy` can learn batches of chunks normalised by `spec`, and be valued on them.

    Raises:
        SpecError: another chunk length, or another normalisation; names the dimension.
    """
    require_same_chunk(spec, policy)
    spec.require_same(policy.spec, what="the base policy")


def require_same_chunk(spec: ActionSpec, policy: ChunkPolicy) -> None:
    """Check that `policy` draws chunks of the length of `spec`.

    Raises:
        SpecError: it does not.
    """
    if policy.spec.chunk != spec.chunk:
        raise SpecError(
            f"the base policy's chunks have H={policy.spec.chunk}, the critic's H={spec.chunk}: "
            f"pass --action-chunk {policy.spec.chunk}"
        )
