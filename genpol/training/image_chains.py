"""The chains that an image value learns from, drawn once, round by round, and kept on the disk.

RUN/chains/train-000064.safetensors     a round that begins with prompt 64
RUN/chains/held-out-000000.safetensors

A run that is stopped or killed loses at most one round. A round that is missing is drawn again, the
same, since every draw is a function of the seed and the image's number. The folder goes when the
run has come to its end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.errors import InputError
from diffusion.fitting import Fitting
from diffusion.pipelines import ImagePolicy
from diffusion.process import ReverseProcess
from diffusion.prompts.sources import PromptSource
from diffusion.rewards import RewardFn
from diffusion.scores import take
from diffusion.streams import VALUE_HELD_OUT, VALUE_ROLLOUT
from diffusion.values.chains import Examples, draw_round, others_of, state_bytes, states_of
from diffusion.values.config import ImageValueConfig
from diffusion.values.learning import Part
from diffusion.values.levels import levels
from diffusion.values.text import kept
from genpol.runs.run import Run
from genpol.runs.tensor_files import Torn, read_tensors, write_tensors
from offline.files import beside, disk_errors

FOLDER = "chains"
IMAGES = 64  # of a round, at least those of one prompt


@dataclass(frozen=True)
class Side:
    """Training or held-out prompts, and which states of their chains are kept (N, S)."""

    name: str
    prompts: list[str]
    states: Tensor
    others: Tensor
    """(N, B, O) prompts that each image is judged against as well."""
    purpose: int


class ImageChains:
    """What a run draws.

    Args:
        policy, process, reward: draw and judge the images.
        prompts: where prompts come from.
        config: how many of each.
        memory_gb: for all states together.
        batch: images drawn at a time.

    Attributes:
        images: of all prompts, held-out ones included.
        drawn: of them, so far.
        cpu_seconds: that it took to draw and judge those that no earlier sitting had drawn.
        remarks: what differs from what was asked for, a line each.

    Raises:
        InputError: not even two states of each chain fit.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        process: ReverseProcess,
        reward: RewardFn,
        prompts: PromptSource,
        config: ImageValueConfig,
        *,
        memory_gb: float,
        batch: int,
    ) -> None:
        self.policy, self.process, self.reward, self.config = policy, process, reward, config
        self.batch, self.drawn, self.remarks = Fitting(batch, option="--batch"), 0, list[str]()
        self.cpu_seconds = 0.0
        self.by_prompt: bool | None = None  # until a round has told
        count = config.num_prompts
        if prompts.num_train is not None and prompts.num_train < count:
            count = prompts.num_train
            self.remarks.append(
                f"{prompts.name} has {count} training prompts, fewer than --num-prompts "
                f"{config.num_prompts}: all of them are drawn once"
            )
        train = prompts.train(0, count, config.seed)
        held_out = prompts.held_out(config.num_held_out, config.seed)
        self.images = (len(train) + len(held_out)) * config.images_per_prompt
        wanted, steps = self._fitting(memory_gb), process.num_steps
        one = states_of(steps, wanted, config.seed)
        several = states_of(steps, wanted, config.seed, range(count))
        images = config.images_per_prompt
        asked = 0 if getattr(reward, "whole", False) else config.other_prompts
        others, none = (
            others_of(images, many, len(of), config.seed, range(len(of)))
            for many, of in ((asked, train), (0, held_out))
        )
        self.train = Side("train", train, several, others, VALUE_ROLLOUT)
        self.held_out = Side(
            "held-out", held_out, one.expand(len(held_out), -1), none, VALUE_HELD_OUT
        )

    def _fitting(self, memory_gb: float) -> int:
        """States of each chain that fit into the memory."""
        wanted = min(self.config.states, self.process.num_steps + 1)
        each = state_bytes(self.policy.latent_shape, self.images)
        fit = int(memory_gb * 2**30 // each)
        if fit < 2:
            raise InputError(
                f"two states of each of {self.images} images need {2 * each / 2**30:.2f} GiB, and "
                f"--memory-gb is {memory_gb:g}: raise it, or lower --num-prompts or "
                "--images-per-prompt"
            )
        if fit < wanted:
            self.remarks.append(
                f"{fit} states of each chain are kept instead of {wanted}: more do not fit into "
                f"--memory-gb {memory_gb:g}"
            )
        return min(fit, wanted)

    def announcement(self) -> str:
        """What is going to be drawn, in one line."""
        steps, states = self.process.num_steps, self.train.states.shape[1]
        return (
            f"drawing {self.images} images of {len(self.train.prompts)} training and "
            f"{len(self.held_out.prompts)} held-out prompts, {self.config.images_per_prompt} of "
            f"each, in {steps} steps; {states} states of each chain are kept"
        )

    def draw(
        self, run: Run, stop: Callable[[], bool], tick: Callable[[int], object]
    ) -> tuple[Part, Part] | None:
        """Training and held-out examples; None where `stop` said so.

        Args:
            run: in whose folder rounds are kept.
            tick: is told how many images have been drawn or read.

        Raises:
            InputError: the disk refuses.
            RewardError: the reward fails.
        """
        run.used = True  # rounds on the disk are work
        folder = run.folder / FOLDER
        remedy = f"Free some space, then: genpol value --resume {run.folder}"
        with disk_errors(f"cannot write in {folder}", remedy):
            folder.mkdir(exist_ok=True)
        table, parts = levels(self.process), []
        for side in (self.held_out, self.train):
            cond = self.policy.encode(side.prompts)
            rounds = []
            for first, last in self._rounds(side):
                if stop():
                    return None
                with disk_errors(f"cannot write in {folder}", remedy):
                    rounds.append(self._round(folder, side, cond, first, last))
                self.drawn += (last - first) * self.config.images_per_prompt
                tick((last - first) * self.config.images_per_prompt)
            parts.append(Part(Examples.joined(rounds), kept(cond), table))
        return parts[1], parts[0]

    def _rounds(self, side: Side) -> Iterator[tuple[int, int]]:
        size = max(1, IMAGES // self.config.images_per_prompt)
        for first in range(0, len(side.prompts), size):
            yield first, min(first + size, len(side.prompts))

    def _round(self, folder: Path, side: Side, cond: Condition, first: int, last: int) -> Examples:
        path = folder / f"{side.name}-{first:06d}.safetensors"
        states, others = side.states[first:last], side.others[first:last]
        if self.by_prompt is False:
            others = others[:, :, :0]
        if (found := _read(path, states, others, self.config.images_per_prompt)) is not None:
            return self._noticed(found)
        began = time.process_time()
        made = draw_round(
            self.policy,
            self.process,
            self.reward,
            side.prompts[first:last],
            take(cond, torch.arange(first, last)),
            images=self.config.images_per_prompt,
            states=states,
            others=others,
            everything=side.prompts,
            seed=self.config.seed,
            purpose=side.purpose,
            first=first,
            batch=self.batch,
        )
        self.cpu_seconds += time.process_time() - began
        with beside(path) as temporary:
            write_tensors(temporary, made.tensors())
        return self._noticed(made)

    def _noticed(self, examples: Examples) -> Examples:
        """Find out by the first round whether the reward depends on the prompt at all."""
        if examples.other.shape[2] and self.by_prompt is None:
            own = examples.reward[..., None].expand_as(examples.other_reward)
            self.by_prompt = not torch.equal(own, examples.other_reward)
        return examples if self.by_prompt else examples.without_others()

    def remove(self, run: Run) -> None:
        """Take the rounds away."""
        run.used = False
        shutil.rmtree(run.folder / FOLDER, ignore_errors=True)


def _read(path: Path, states: Tensor, others: Tensor, images: int) -> Examples | None:
    """A round that has been drawn; None where there is none, or none of these states."""
    try:
        found = Examples(**read_tensors(path, None))
    except (OSError, Torn, TypeError):
        return None
    whole = found.step.equal(states) and found.other.equal(others)
    return found if whole and found.x.shape[:3] == (len(states), images, states.shape[1]) else None
