"""The reward fine-tuning loop: draw images, reward them, take K exact-gradient steps.

One epoch:
    1. N prompts, B chains each, with log-probs under the current weights and the reference
    2. decode, reward -> (N B,)
    3. K times: objective -> dL/d log-prob -> two-pass backward -> AdamW

Everything random is a function of (seed, purpose, epoch, index), so a resumed run needs no RNG
state and draws the same images whatever the batch sizes are.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion.chain import Condition, DenoisingChain, sample_chain, score_steps
from diffusion.config import FinetuneConfig
from diffusion.errors import Diverged, InputError
from diffusion.objective import Objective, Rollouts, step_weights
from diffusion.pipelines import DTYPES, ImagePolicy
from diffusion.prdp import PRDP
from diffusion.prompts.sources import PromptSource
from diffusion.rewards.function import load_function
from diffusion.two_pass import Backward, two_pass_backward

RewardFn = Callable[[Tensor, list[str]], Tensor]
ROLLOUT, EVALUATION = 1, 2  # purposes of a random stream
RATIO_PROBES = 16  # steps re-scored each epoch; cheap beside thousands


class Stopped(Exception):
    """The caller asked to stop while images were being drawn; weights are as after `epoch`."""


def generators(seed: int, purpose: int, epoch: int, indices: range) -> list[torch.Generator]:
    """One CPU generator per image."""
    out = []
    for i in indices:
        words = np.random.SeedSequence([seed, purpose, epoch, i]).generate_state(1, np.uint64)
        out.append(torch.Generator().manual_seed(int(words[0]) >> 1))
    return out


def take(cond: Condition, rows: Tensor) -> Condition:
    """The conditioning of some rows."""
    return {k: v[rows.to(v.device)] for k, v in cond.items()}


def make_objective(config: FinetuneConfig) -> Objective:
    """The objective that a configuration names; one of the user's own is made from it.

    Raises InputError for a name that is neither known nor can be imported.
    """
    if ":" in config.algorithm:
        return load_function(config.algorithm, what="Objective")(config)
    if config.algorithm != "prdp":
        raise InputError(
            f'unknown objective "{config.algorithm}": expected "prdp", or module:name of a '
            "function of the configuration that returns an objective"
        )
    return PRDP(
        beta=config.beta,
        clip=config.clip if config.clipping else None,
        unit=config.unit,
        aggregate=config.aggregate,
    )


@dataclass
class Evaluation:
    """Held-out images with their prompts and named rewards, each (n,)."""

    images: Tensor
    prompts: list[str]
    rewards: dict[str, Tensor]


class Finetuner:
    """A policy, a reward and prompts, trained epoch by epoch.

    `gold` are rewards that are only ever evaluated, never trained on. `config` is resolved: no
    None where a number is needed. `objective` replaces the one that `config.algorithm` names.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        reward: RewardFn,
        prompts: PromptSource,
        config: FinetuneConfig,
        gold: Mapping[str, RewardFn] | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.policy, self.reward, self.prompts, self.config = policy, reward, prompts, config
        self.gold = gold or {}
        self.process = policy.process(config.num_inference_steps, eta=config.eta)
        self.weights = step_weights(self.process, config.step_weights)
        self.objective: Objective = objective or make_objective(config)
        self.params = policy.trainable()
        self.optimiser = torch.optim.AdamW(
            list(self.params.values()), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.average = {n: p.detach().clone() for n, p in self.params.items()} if config.ema else {}
        self.backward: Backward = torch.Tensor.backward  # what a bench wants timed
        self.epoch = 0
        self.updates = 0

    # -- drawing ----------------------------------------------------------------------------------

    def draw(
        self,
        prompts: list[str],
        copies: int,
        purpose: int,
        epoch: int,
        *,
        reference: bool,
        tick: Callable[[], bool] | None = None,
    ) -> tuple[DenoisingChain, Condition]:
        """Chains of every prompt `copies` times (prompt-major), and the prompts' conditioning.

        `tick` is called between batches; when it returns True, Stopped is raised.
        """
        cfg, total = self.config, len(prompts) * copies
        cond = self.policy.encode(prompts)
        parts = []
        for first in range(0, total, cfg.rollout_batch):
            rows = torch.arange(first, min(first + cfg.rollout_batch, total))
            parts.append(
                sample_chain(
                    self.policy.predict,
                    self.process,
                    take(cond, rows // copies),
                    self.policy.latent_shape,
                    generators(cfg.seed, purpose, epoch, range(first, first + len(rows))),
                    reference=self.policy.predict_reference if reference else None,
                    storage_dtype=DTYPES[cfg.storage_dtype],
                    device=self.policy.device,
                )
            )
            if tick is not None and tick():
                raise Stopped
        return DenoisingChain.concatenate(parts), cond

    def evaluate(self, count: int) -> Evaluation:
        """One image of each of `count` held-out prompts, fixed seeds, scored by every reward."""
        prompts = self.prompts.held_out(count, self.config.seed)
        with self.averaged_weights():
            chain, _ = self.draw(prompts, 1, EVALUATION, 0, reference=False)
        images = self.policy.decode(chain.sample.float())
        rewards = {"reward": self.reward(images, prompts)}
        rewards |= {name: fn(images, prompts) for name, fn in self.gold.items()}
        return Evaluation(images, prompts, rewards)

    def averaged_weights(self) -> SwapWeights:
        """Within this context the EMA weights are in place, where there are any."""
        return SwapWeights(self.params, self.average)

    # -- one epoch --------------------------------------------------------------------------------

    def run_epoch(self, tick: Callable[[], bool] | None = None) -> dict[str, float]:
        """Advance one epoch and return its metrics (documented in docs/metrics.md)."""
        cfg, start = self.config, time.perf_counter()
        copies = cfg.images_per_prompt
        prompts = self.prompts.train(self.epoch, cfg.prompts_per_epoch, cfg.seed)
        chain, cond = self.draw(prompts, copies, ROLLOUT, self.epoch, reference=True, tick=tick)
        images = self.policy.decode(chain.sample.float())
        group = torch.arange(len(prompts)).repeat_interleave(copies)
        reward = self.reward(images, [prompts[g] for g in group.tolist()])
        assert chain.log_prob_ref is not None and chain.kl is not None
        rollouts = Rollouts(
            log_prob_old=chain.log_prob.cpu(),
            log_prob_ref=chain.log_prob_ref.cpu(),
            reward=reward,
            group=group,
            step_weight=self.weights,
            dimensions=chain.dimensions,
        )
        drawn = time.perf_counter() - start

        def score(rows: Tensor, steps: Tensor) -> Tensor:
            picked = take(cond, group[rows])
            return score_steps(self.policy.predict, self.process, chain, picked, rows, steps).cpu()

        metrics = {"check/ratio_error": self.ratio_error(score, rollouts)}
        norms = []
        for k in range(cfg.inner_steps):
            self.optimiser.zero_grad(set_to_none=True)
            # Before the first step the current weights are the ones that drew the chains.
            known = rollouts.log_prob_old if k == 0 else None
            inner = two_pass_backward(
                score,
                self.objective,
                rollouts,
                cfg.micro_batch,
                current=known,
                backward=self.backward,
            )
            norms.append(self.optimiser_step())
        with torch.no_grad():  # weights may be finite and what the network says may not
            self.require_finite("what the network says", self.ratio_error(score, rollouts, 4))
        seconds = time.perf_counter() - start
        self.epoch += 1
        stochastic = self.process.stochastic
        kl = chain.kl.cpu()[:, stochastic].double()
        metrics |= inner | reward_statistics(reward)
        metrics |= {
            "kl/per_dim": float(kl.mean()),
            "kl/nats": float(kl.sum(1).mean() * chain.dimensions),
            "train/gradient_norm": float(np.mean(norms)),
            "train/images": float(self.epoch * len(group)),
            "time/epoch_seconds": seconds,
            "time/rollout_share": drawn / seconds,
            "time/images_per_second": len(group) / seconds,
            "memory/peak_mb": peak_memory_mb(self.policy.device),
        }
        return metrics

    def optimiser_step(self) -> float:
        """Clip, step, average; returns the gradient norm before clipping."""
        parameters = [p for p in self.params.values() if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        self.require_finite("the gradient", norm)
        self.optimiser.step()
        sizes = torch._foreach_norm([p.detach() for p in self.params.values()])
        self.require_finite("the norm of the weights", float(torch.stack(sizes).sum()))
        self.updates += 1
        if self.average:
            torch._foreach_lerp_(
                list(self.average.values()),
                [p.detach() for p in self.params.values()],
                1 - self.config.ema,
            )
        return norm

    def require_finite(self, what: str, number: float) -> None:
        """Raise Diverged for a number of this step that is NaN or infinite."""
        if math.isfinite(number):
            return
        half = torch.float16 in (self.policy.autocast_dtype, self.policy.unet.dtype)
        other = ", or use bf16 instead of fp16" if half else ""
        raise Diverged(
            f"fine-tuning diverged in epoch {self.epoch + 1}, at step {self.updates + 1}: {what} "
            f"became {number}. Lower --learning-rate, or scale the reward down{other}"
        )

    def ratio_error(
        self,
        score: Callable[[Tensor, Tensor], Tensor],
        rollouts: Rollouts,
        probes: int = RATIO_PROBES,
    ) -> float:
        """Largest |log-prob re-scored - log-prob stored| over a few steps, per dimension.

        Before any update this is 0 up to arithmetic; anything near --clip means that the clip
        would act on rounding, not on learning.
        """
        used = (rollouts.step_weight > 0).expand(*rollouts.log_prob_old.shape)
        rows, steps = used.nonzero(as_tuple=True)
        # A batch spread over chains and steps, with a graph as in training.
        pick = torch.linspace(0, len(rows) - 1, min(probes, len(rows))).long()
        again = score(rows[pick], steps[pick]).detach()
        return float((again - rollouts.log_prob_old[rows[pick], steps[pick]]).abs().max())

    # -- state ------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Everything a resumed run needs: tensors, and JSON-able values."""
        tensors = {f"weights.{n}": p.detach() for n, p in self.params.items()}
        tensors |= {f"ema.{n}": t for n, t in self.average.items()}
        for name, parameter in self.params.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{key}.{name}"] = value
        return tensors, {"epoch": self.epoch, "updates": self.updates}

    def load_state(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Restore `state()`; raises InputError when it belongs to other weights."""
        mine = {f"weights.{n}": tuple(p.shape) for n, p in self.params.items()}
        theirs = {n: tuple(t.shape) for n, t in tensors.items() if n.startswith("weights.")}
        if mine != theirs:
            odd = sorted(set(mine.items()) ^ set(theirs.items()))[0][0].removeprefix("weights.")
            raise InputError(f'the checkpoint is of another model: "{odd}" does not match')
        for name, parameter in self.params.items():
            expected = {f"ema.{name}": parameter.shape} if self.average else {}
            if f"optimiser.step.{name}" in tensors:
                expected[f"optimiser.step.{name}"] = torch.Size(())
                for moment in ("exp_avg", "exp_avg_sq"):
                    expected[f"optimiser.{moment}.{name}"] = parameter.shape
            for key, shape in expected.items():
                if key not in tensors or tensors[key].shape != shape:
                    raise InputError(f'the checkpoint has no "{key}" of shape {tuple(shape)}')
        with torch.no_grad():
            for name, parameter in self.params.items():
                parameter.copy_(tensors[f"weights.{name}"])
                if self.average:
                    self.average[name].copy_(tensors[f"ema.{name}"])
                state = {
                    key: tensors[f"optimiser.{key}.{name}"].clone()
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"optimiser.{key}.{name}" in tensors
                }
                if state:
                    moved = {
                        k: v if k == "step" else v.to(parameter.device) for k, v in state.items()
                    }
                    self.optimiser.state[parameter] = moved
        self.epoch, self.updates = values["epoch"], values["updates"]


class SwapWeights:
    """Context: `values` stand in for parameters, which come back afterwards bit for bit."""

    def __init__(self, params: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
        self.params, self.values = params, values

    def __enter__(self) -> None:
        self.kept = {n: self.params[n].detach().clone() for n in self.values}
        with torch.no_grad():
            for name, value in self.values.items():
                self.params[name].copy_(value)

    def __exit__(self, *exc: object) -> None:
        with torch.no_grad():
            for name, value in self.kept.items():
                self.params[name].copy_(value)


def reward_statistics(reward: Tensor) -> dict[str, float]:
    """Mean, std and percentiles of an epoch's training rewards."""
    points = torch.quantile(reward.double(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    return {
        "reward/mean": float(reward.mean()),
        "reward/std": float(reward.std()),
        "reward/p10": float(points[0]),
        "reward/p50": float(points[1]),
        "reward/p90": float(points[2]),
    }


def peak_memory_mb(device: torch.device | str = "cpu") -> float:
    """Peak bytes allocated on a CUDA device, else the process's peak resident set; in MB (1e6)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
