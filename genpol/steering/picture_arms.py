"""What a steered pipeline is compared with at equal network evaluations: one sample, the best of
k finished pictures by the true reward, and guidance.

The budget is what steering has spent on a picture, counted at the network. Every arm gets as much
of it as it can use in whole steps and whole pictures, and what it really spent is counted, too:

    one sample            T steps; it cannot spend more
    best of k             as many finished candidates as the budget draws; the reward chooses
    best of K             all candidates of steering, finished: dearer, shown for comparison
    guidance s, T' steps  one picture in as many steps as the budget allows
    guidance s, best of k the budget in finished pictures of T steps; the reward chooses

Candidate k of a picture has the same seed in every arm. Shapes: N pictures, (3, H, W) each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from diffusion.chain import DenoisingChain, sample_chain
from diffusion.evaluations import Evaluations
from diffusion.pipelines import ImagePolicy
from diffusion.process import ReverseProcess
from diffusion.scores import take
from genpol.steering.picture_chains import SteeredPictures
from genpol.steering.pictures import Judged, Pictures, as_images, observations
from genpol.steering.select import argmax
from genpol.steering.steered import Steered

Floats = NDArray[np.float64]
Reward = Callable[[Tensor, list[str]], Tensor]
MakeProcess = Callable[[int], ReverseProcess]  # of so many denoising steps
ONE, STEERED = "one sample", "steered"


@dataclass(frozen=True)
class Arm:
    """One way to spend network evaluations on N pictures.

    name: in tables.
    images: (N, 3, H, W) in [0, 1].
    evaluations: of the network for one picture, counted.
    reward_calls: for one picture.
    seconds: for one picture, with everything but scores that only judge.
    scores: name -> (N,).
    """

    name: str
    images: Tensor
    evaluations: float
    reward_calls: int
    seconds: float
    scores: dict[str, Floats]


@dataclass
class Comparison:
    """Draws the arms.

    Args:
        policy: the pipeline.
        make: the process with a number of steps.
        steps: T.
        prompts: N.
        seed: of the first candidate of the first picture.
        candidates: K of steering.
        reward: that chooses the best of k; it is what the value learnt.
        judges: name -> reward that only judges.
        batch: pictures that the network sees at a time.
        tick: called before every batch; what it raises ends the drawing.
    """

    policy: ImagePolicy
    make: MakeProcess
    steps: int
    prompts: list[str]
    seed: int
    candidates: int
    reward: Reward
    judges: Mapping[str, Reward]
    batch: int
    tick: Callable[[], None] | None = None

    def arms(
        self, steered: SteeredPictures, seconds: float, scales: Sequence[float], calls: int = 0
    ) -> list[Arm]:
        """All arms, steering second.

        Args:
            steered: what steering drew of the same prompts.
            seconds: that it took.
            scales: of guidance; the policy's own is left out, as it is "one sample".
            calls: of the reward that steering made for a picture.
        """
        n, budget = len(self.prompts), steered.evaluations / len(self.prompts)
        one = self.best_of(1, ONE)
        found = [one, self._judged(STEERED, steered.images, budget, calls, seconds / n)]
        equal = max(1, int(budget / one.evaluations + 1e-6))
        for k in sorted({equal, self.candidates} - {1}):
            found.append(self.best_of(k, f"best of {k}"))
        for scale in scales:
            found += self.guided(scale, budget)
        return found

    def best_of(self, k: int, name: str, steps: int | None = None) -> Arm:
        """The best of k finished pictures by the reward, which is `Steered` itself.

        With k = 1 the reward is not asked to choose.
        """
        process = self.make(steps or self.steps)
        size = self.policy.family.image_size
        start, at_once = perf_counter(), max(1, self.batch // k)
        images, n = [], len(self.prompts)

        def draw(prompts: list[str], seeds: list[int]) -> Tensor:
            return drawn(self.policy, process, prompts, seeds, self.batch, self.tick)

        base = Pictures(draw, self.prompts, size)
        with Evaluations(self.policy.denoiser) as seen:
            steered = Steered(
                base, Judged(self.reward, self.prompts, size), k, argmax(), check=False
            )
            for first in range(0, n, at_once):
                places = range(first, min(first + at_once, n))
                seeds = [self.seed + i * self.candidates for i in places]
                obs = observations(places, seeds)
                if k == 1:
                    images.append(as_images(base.sample(obs, 1, None)[:, 0]))
                else:
                    images.append(as_images(steered.decide(obs, None).action))
        spent, calls = (perf_counter() - start) / n, k if k > 1 else 0
        return self._judged(name, torch.cat(images), seen.count / n, calls, spent)

    def guided(self, scale: float, budget: float) -> list[Arm]:
        """Guidance at one scale: in more steps, and as the best of fewer pictures."""
        with self.policy.at_guidance(scale):
            cost = self._step_cost()
            steps = max(1, int(budget / cost + 1e-6))
            name = f"guidance {scale:g}"
            found = [self.best_of(1, f"{name}, {steps} steps", steps)]
            k = int(budget / (cost * self.steps) + 1e-6)
            if k > 1:
                found.append(self.best_of(k, f"{name}, best of {k}"))
        return found

    def _step_cost(self) -> int:
        """Evaluations of one step of one picture, counted on one."""
        policy = self.policy
        with torch.no_grad(), Evaluations(policy.denoiser) as seen:
            x = torch.zeros(1, *policy.latent_shape, device=policy.device)
            t = self.make(self.steps).timesteps_at(torch.zeros(1, dtype=torch.long))
            policy.predict(x, t.to(policy.device), policy.encode(self.prompts[:1]))
        return seen.count

    def _judged(
        self, name: str, images: Tensor, evaluations: float, calls: int, seconds: float
    ) -> Arm:
        scores = {
            key: np.asarray(judge(images, self.prompts), np.float64)
            for key, judge in {"reward": self.reward, **self.judges}.items()
        }
        return Arm(name, images, evaluations, calls, seconds, scores)


def drawn(
    policy: ImagePolicy,
    process: ReverseProcess,
    prompts: list[str],
    seeds: list[int],
    batch: int,
    tick: Callable[[], None] | None = None,
) -> Tensor:
    """Plain pictures (M, 3, H, W) of M prompts by their seeds, `batch` at a time."""
    cond, found = policy.encode(prompts), []
    for first in range(0, len(prompts), batch):
        if tick is not None:
            tick()
        some = seeds[first : first + batch]
        rows = torch.arange(first, first + len(some))
        chain = sample_chain(
            policy.predict,
            process,
            take(cond, rows),
            policy.latent_shape,
            [Generator().manual_seed(seed) for seed in some],
            device=policy.device,
            into=DenoisingChain.empty(
                len(some), policy.latent_shape, process.num_steps, device=policy.device, path=False
            ),
        )
        found.append(policy.decode(chain.sample))
    return torch.cat(found)
