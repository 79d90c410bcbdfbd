"""What the pipeline reaches without training: the best of K candidates, and guidance.

Fine-tuning spends reward calls. The untrained pipeline can spend them too: it draws K candidates
of each prompt, and the reward chooses the best one. A result says little that does not beat this.
The choice is made by the training reward; the gold rewards judge what was chosen.

    K at equal reward calls = ceil(reward calls of training / held-out prompts)

Candidate 1 of a prompt is the picture of the evaluation before training, with the same noise, so
the best of 1 is that evaluation, and the best of k is part of the best of K. Everything is drawn
under the reference weights, with fixed seeds: it depends on no training.

Shapes: K candidates, n prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.errors import InputError
from diffusion.evaluating import Held
from diffusion.finetune import Finetuner
from diffusion.measures import Evaluation
from diffusion.pipelines import ImagePolicy
from diffusion.streams import EVALUATION
from genpol.finetuning.samples import PICTURES

Floats = NDArray[np.float64]
Tick = Callable[[], bool]


@dataclass
class BestOf:
    """Up to K candidates of each of n prompts.

    prompts: n.
    scores: name -> (K, n). "reward" is of every candidate. Other rewards judged a candidate only
        where it was the best so far, and are NaN elsewhere.
    images: (m, 3, H, W) the best of K of the first m prompts; none in processes that write nothing.
    """

    prompts: list[str]
    scores: dict[str, Floats]
    images: Tensor

    @property
    def count(self) -> int:
        """K."""
        return len(self.scores["reward"])

    def chosen(self, k: int) -> dict[str, Floats]:
        """Scores (n,) by name of what the training reward chooses among the first k candidates.

        Of equal ones the first is chosen.

        Raises:
            InputError: k is not 1 to K.
        """
        if not 1 <= k <= self.count:
            raise InputError(f"expected the best of 1 to {self.count} candidates, received {k}")
        best, each = self.scores["reward"][:k].argmax(0), np.arange(len(self.prompts))
        return {name: values[best, each] for name, values in self.scores.items()}


def equal_k(reward_calls: int, prompts: int) -> int:
    """Candidates of each prompt that cost at least as many reward calls as training did."""
    return max(1, math.ceil(reward_calls / prompts))


def best_of_k_kl(k: int) -> float:
    """An upper bound of KL(best of k || untrained) of an image, in nats: log k - (k - 1) / k.

    It is the KL itself where no two rewards are equal (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(k) - (k - 1) / k


def best_of_k(
    tuner: Finetuner,
    k: int,
    count: int,
    *,
    start: BestOf | None = None,
    save: Callable[[BestOf], None] | None = None,
    tick: Tick | None = None,
) -> BestOf:
    """Draw K candidates of each of `count` held-out prompts from the untrained pipeline.

    Costs K `count` images and reward calls, and about log K calls of each gold reward a prompt.
    Memory does not grow with K.

    Args:
        tuner: whose reference weights draw, and whose rewards judge. It is left as it was.
        k: candidates of each prompt, at least 1.
        count: held-out prompts; fewer where there are fewer.
        start: candidates that there are already; it is changed.
        save: called with what there is after each candidate of all prompts.
        tick: called between batches; when it returns True, `diffusion.finetune.Stopped` is raised.

    Raises:
        InputError: k or count is below 1.
        RewardError: a reward failed.
    """
    if k < 1 or count < 1:
        raise InputError(f"expected at least 1 candidate and prompt, received {k} and {count}")
    prompts = tuner.prompts.held_out(count, tuner.config.seed)
    found = start or _nothing(tuner, prompts)
    best = found.scores["reward"].max(0, initial=-np.inf)
    for candidate in range(found.count, k):
        held = draw_untrained(tuner, prompts, candidate, tick)
        reward = _asked(tuner, "reward", held)
        better = np.flatnonzero(reward > best)
        rows = {"reward": reward}
        for name in tuner.gold:
            rows[name] = np.full(len(prompts), np.nan)
            if len(better):
                rows[name][better] = _asked(tuner, name, held.some(torch.from_numpy(better)))
        best = np.maximum(best, reward)
        images = held.pictures()
        if not len(found.images):
            found.images = images[:PICTURES].clone()
        shown = better[better < len(found.images)]
        found.images[shown] = images[shown]
        found.scores = {name: np.vstack([found.scores[name], row]) for name, row in rows.items()}
        if save is not None:
            save(found)
    return found


def at_guidance(
    tuner: Finetuner, scale: float, count: int, *, tick: Tick | None = None
) -> Evaluation:
    """The evaluation before training at another guidance scale: same prompts, same noise.

    A scale of 1 or below is none. Above it an image costs two passes of the network a step, unless
    the network takes the scale as an input.
    """
    prompts = tuner.prompts.held_out(count, tuner.config.seed)
    with guided(tuner.policy, scale):
        held = draw_untrained(tuner, prompts, 0, tick)
    rewards = {n: torch.from_numpy(_asked(tuner, n, held)) for n in ("reward", *tuner.gold)}
    return Evaluation(held.pictures(), prompts, rewards)


def draw_untrained(
    tuner: Finetuner, prompts: list[str], candidate: int = 0, tick: Tick | None = None
) -> Held:
    """One image of each prompt by the reference weights; flow models by the ODE.

    Candidate 0 has the noise of every evaluation; the others have their own.
    """
    policy = tuner.policy
    with policy.full_size(), policy.as_reference():  # one switch of weights for all steps
        drawn = tuner.draw(
            prompts,
            1,
            EVALUATION,
            candidate,
            reference=False,
            process=tuner.drawing.process_of_evaluations(),
            predict=policy.predict_reference,
            tick=tick,
            path=False,
        )
        return Held(policy.decode(drawn.chain.sample.float()), drawn.share, prompts)


@contextmanager
def guided(policy: ImagePolicy, scale: float) -> Iterator[None]:
    """Context: the policy's guidance scale is another one."""
    kept = policy.guidance_scale
    policy.guidance_scale = scale
    try:
        yield
    finally:
        policy.guidance_scale = kept


def _nothing(tuner: Finetuner, prompts: list[str]) -> BestOf:
    none = {name: np.empty((0, len(prompts))) for name in ("reward", *tuner.gold)}
    return BestOf(prompts, none, torch.empty(0, 3, 1, 1))


def _asked(tuner: Finetuner, name: str, held: Held) -> Floats:
    """Scores (n,) of held-out images; neighbours with the same prompt are a group."""
    prompts = held.prompts
    new = [i > 0 and prompts[i] != prompts[i - 1] for i in range(len(prompts))]
    said = tuner.ask(name, held, torch.tensor(new, dtype=torch.long).cumsum(0))
    return np.asarray(said.raw, np.float64)
