"""Learns V(x_t, level, prompt) from stored states of chains by regression on the final reward.

A batch is a few groups: all B images of one prompt, each at the same state of its chain. With the
reward r and the value v in standard deviations of the reward, the loss of a group is

    mean (v - r)^2 + w mean ((v - mean v) - (r - mean r))^2

The first term is the regression. The second one is its part within the prompt once more: steering
chooses among images of one prompt, and most of the reward's variance may lie between prompts. Half
as many latents again come from single images that were judged against other prompts. V then reads
the prompt they were judged against, and the loss is the squared error.

Every batch is a function of (seed, step), and the result is an average of the weights.

Shapes: N prompts, B images of each, S states of a chain, G groups of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.errors import InputError
from diffusion.scores import take
from diffusion.streams import VALUE_BATCHES
from diffusion.values.chains import Examples
from diffusion.values.config import ImageValueConfig
from diffusion.values.image_value import ImageValue, ValueAbout
from diffusion.values.measures import explained, rank_correlation, share_of_best

WITHIN = 2.0  # w
WITHOUT_HAT = 0.1  # share of groups that are not shown x0_hat, so that V can do without
NOISE = 0.2  # added to latents in learning, so that no image is known by heart
AVERAGE = 0.995  # decay of the average of the weights
WEIGHT_DECAY = 1e-2
MEASURES = {"rank": "rank_correlation", "share_of_best": "share_of_best", "r2": "r2"}
AT_ONCE = 1024  # latents that are judged at a time


class Part:
    """Training or held-out examples beside what says of their prompts.

    Args:
        examples: of N prompts.
        cond: N rows.
        levels: (T + 1,) of the states of a chain.
    """

    def __init__(self, examples: Examples, cond: Condition, levels: Tensor) -> None:
        self.examples, self.cond, self.levels = examples, cond, levels

    def __len__(self) -> int:
        return len(self.examples.reward)


@dataclass(frozen=True)
class _Rows:
    """M latents: prompt, image, state, whether x0_hat is shown, and the prompt that V reads."""

    n: Tensor
    b: Tensor
    s: Tensor
    hat: Tensor
    text: Tensor

    @staticmethod
    def of_groups(n: Tensor, s: Tensor, hat: Tensor, images: int) -> _Rows:
        """All images of the prompts n (G,) at the states s (G,)."""
        n, s, hat = (one.repeat_interleave(images) for one in (n, s, hat))
        return _Rows(n, torch.arange(images).repeat(len(n) // images), s, hat, n)

    @staticmethod
    def joined(one: _Rows, other: _Rows) -> _Rows:
        names = [f.name for f in fields(_Rows)]
        return _Rows(**{m: torch.cat([getattr(one, m), getattr(other, m)]) for m in names})


class ValueLearning:
    """A value that is being learnt, one gradient step at a time.

    It has the methods of `offline.data.dataset_training.Learning`, which this package cannot name.

    Args:
        about: what the value is of; the reward's mean and standard deviation are filled in.
        config: see `ImageValueConfig`.
        train, held_out: the examples.
        fingerprint: of what they were made from.
        device: where to learn.

    Raises:
        InputError: the reward is the same for all training images of every prompt.
    """

    name, loss = "the value", "value/loss"

    def __init__(
        self,
        about: ValueAbout,
        config: ImageValueConfig,
        train: Part,
        held_out: Part,
        *,
        fingerprint: str = "",
        device: str | torch.device = "cpu",
    ) -> None:
        self.config, self.train, self.held_out = config, train, held_out
        self.fingerprint, self.device = fingerprint, torch.device(device)
        reward = train.examples.reward
        if not (reward.amax(1) > reward.amin(1)).any():
            raise InputError(
                f"the reward is the same for all {reward.shape[1]} images of every prompt (such as "
                f"{float(reward[0, 0]):.4g}), so there is nothing to choose by: draw by a sampler "
                "with noise, more images of each prompt, or learn another reward"
            )
        entries = vars(about) | {
            "mean": float(reward.mean()),
            "std": float(reward.std()),
            "width": config.channels,
            "blocks": config.blocks,
        }
        with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
            torch.manual_seed(config.seed)
            self.value = ImageValue(ValueAbout(**entries)).to(self.device)
        self.cpu_seconds = 0.0  # that steps took
        self.average = deepcopy(self.value).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.value.parameters(), config.lr, weight_decay=WEIGHT_DECAY
        )

    # -- steps ------------------------------------------------------------------------------------

    def update(self, step: int) -> dict[str, Tensor]:
        """Take the step numbered from 0."""
        examples, began = self.train.examples, time.process_time()
        prompts, images = examples.reward.shape
        random = np.random.default_rng([self.config.seed, VALUE_BATCHES, step])
        groups = max(1, self.config.batch_size // images)
        n = torch.from_numpy(random.integers(prompts, size=groups))
        s = torch.from_numpy(random.integers(examples.step.shape[1], size=groups))
        hat = torch.from_numpy(random.random(groups) >= WITHOUT_HAT) & (examples.step[n, s] > 0)
        rows = _Rows.of_groups(n, s, hat, images)
        wanted = self._scaled(examples.reward[n]).to(self.device)
        count, singles = groups * images, self._singles(random)
        if singles is not None:
            rows = _Rows.joined(rows, singles[0])
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # what is left out follows the step, too
            torch.manual_seed(int(random.integers(2**62)))
            found = self._network(self.value.train(), self.train, rows, noise=NOISE)
        error = found[:count].view(groups, images) - wanted
        within = error - error.mean(1, keepdim=True)
        loss = error.square().mean() + WITHIN * within.square().mean()
        if singles is not None:
            loss = loss + (found[count:] - singles[1].to(self.device)).square().mean()
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * min(1.0, (step + 1) / 50)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.value.parameters(), 1.0)
        self.optimiser.step()
        self._follow(step)
        self.cpu_seconds += time.process_time() - began
        return {
            "value/loss": loss.detach(),
            "value/error": error.detach().square().mean(),
            "value/error_within": within.detach().square().mean(),
        }

    def _singles(self, random: np.random.Generator) -> tuple[_Rows, Tensor] | None:
        """Single images under other prompts, past their first step, and their scaled rewards; None
        where there are none."""
        examples = self.train.examples
        prompts, images, others = examples.other.shape
        if not others:
            return None
        size = max(1, self.config.batch_size // 2)
        n, b, o = (
            torch.from_numpy(random.integers(many, size=size)) for many in (prompts, images, others)
        )
        s = torch.from_numpy(random.integers(examples.step.shape[1], size=size))
        hat = examples.step[n, s] > 0
        text = torch.where(hat, examples.other[n, b, o], n)  # without x0_hat, only its own prompt
        reward = torch.where(hat, examples.other_reward[n, b, o], examples.reward[n, b])
        return _Rows(n, b, s, hat, text), self._scaled(reward)

    def _scaled(self, reward: Tensor) -> Tensor:
        about = self.value.about
        return (reward - about.mean) / about.std

    def _network(self, value: ImageValue, part: Part, rows: _Rows, *, noise: float = 0.0) -> Tensor:
        """(M,) in standard deviations; `noise` is added to the latents."""
        examples, device = part.examples, self.device
        x, x0_hat = (some[rows.n, rows.b, rows.s] for some in (examples.x, examples.x0_hat))
        if noise:
            x, x0_hat = (some.float() + noise * torch.randn(some.shape) for some in (x, x0_hat))
        level = part.levels[examples.step[rows.n, rows.s]]
        told, place = rows.text.unique(return_inverse=True)
        text = value.text({k: v.to(device) for k, v in take(part.cond, told).items()})
        return value.network(
            x.to(device),
            level.to(device),
            text[place.to(device)],
            x0_hat.to(device),
            rows.hat.to(device),
        )

    def _follow(self, step: int) -> None:
        decay = min(AVERAGE, (step + 1) / (step + 10))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.value.parameters(), strict=True)
            for mean, new in pairs:
                mean.lerp_(new, 1 - decay)

    # -- reports ----------------------------------------------------------------------------------

    @torch.no_grad()
    def held_out_values(self, state: int, *, shown: bool = True) -> Tensor:
        """(N, B) what the average says of held-out images in one of their S states, in the reward's
        units.

        Args:
            state: its place in `held_out.examples`.
            shown: whether it sees x0_hat, which there is after the first step.
        """
        part, value = self.held_out, self.average
        prompts, images = part.examples.reward.shape
        seen = shown and int(part.examples.step[0, state]) > 0
        found = []
        for n in torch.arange(prompts).split(max(1, AT_ONCE // images)):
            s, hat = torch.full_like(n, state), torch.full_like(n, seen).bool()
            rows = _Rows.of_groups(n, s, hat, images)
            found.append(self._network(value, part, rows).cpu())
        return value.about.mean + value.about.std * torch.cat(found).view(prompts, images)

    def judged(self, *, shown: bool = True) -> list[dict[str, float]]:
        """What the average reaches on held-out prompts: a row for each state, noisiest first."""
        part, rows = self.held_out, []
        for state, step in enumerate(part.examples.step[0].tolist()):
            v, reward = self.held_out_values(state, shown=shown), part.examples.reward
            rows.append(
                {
                    "step": float(step),
                    "level": float(part.levels[step]),
                    "rank_correlation": rank_correlation(v, reward),
                    "share_of_best": share_of_best(v, reward),
                    "r2": explained(v, reward),
                }
            )
        return rows

    def report(self, row: Any) -> dict[str, float]:
        """What updates returned, averaged, and what the average reaches on held-out prompts."""
        self._see(self.judged())
        return {**row.means, **self._measures(), "time/seconds_per_step": row.seconds}

    def final(self) -> dict[str, float]:
        """What it reaches without x0_hat, too."""
        rows = [dict(row) for row in self.average.about.held_out]
        for row, bare in zip(rows, self.judged(shown=False), strict=True):
            row["rank_without_hat"] = bare["rank_correlation"]
        self._see(rows)
        return {"value/rank_without_hat": _mean([row["rank_without_hat"] for row in rows])}

    def _see(self, rows: list[dict[str, float]]) -> None:
        finite = tuple({k: v for k, v in row.items() if math.isfinite(v)} for row in rows)
        self.average.about = replace(self.average.about, held_out=finite)

    def _measures(self) -> dict[str, float]:
        rows = self.average.about.held_out
        found = {}
        for short, name in MEASURES.items():
            found[f"value/{short}"] = _mean([row.get(name, math.nan) for row in rows])
            for row in rows:
                found[f"value/{short}@{row['step']:.0f}"] = row.get(name, math.nan)
        return found

    def result(self, steps: Any) -> ImageValue:
        """The average after some steps, which it says in its `meta`."""
        metrics = {k: v if math.isfinite(v) else None for k, v in steps.metrics.items()}
        self.average.meta |= {
            "steps": steps.step,
            "metrics": metrics,
            "learning_cpu_seconds": self.cpu_seconds,
        }
        return self.average.eval()

    # -- state ------------------------------------------------------------------------------------

    def weights(self) -> list[Tensor]:
        """All that is learnt."""
        return list(self.value.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Networks and optimiser; batches are functions of the step."""
        return {
            "value": self.value.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "cpu_seconds": self.cpu_seconds,
            "held_out": [dict(row) for row in self.average.about.held_out],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; the learning rate is the configuration's."""
        self.value.load_state_dict(state["value"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.cpu_seconds = state["cpu_seconds"]
        self._see([dict(row) for row in state["held_out"]])


def _mean(numbers: list[float]) -> float:
    """Of those that are known."""
    known = [number for number in numbers if math.isfinite(number)]
    return sum(known) / len(known) if known else math.nan
