"""What stands beside one run's result: which controls, what they cost, drawn once and kept.

samples/candidates.safetensors       every candidate's scores so far; a killed run goes on from it
samples/evaluation_best_of_16.csv    what the best of 16 got, prompt by prompt
samples/evaluation_guidance_3.csv    what guidance scale 3 got

Controls depend on no training, so a run that is extended draws only what is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from diffusion.errors import shown
from diffusion.finetune import Finetuner
from diffusion.measures import Evaluation
from genpol.finetuning.control_options import CAP, CAPS, SMALL
from genpol.finetuning.controls import BestOf, Floats, Tick, at_guidance, best_of_k, equal_k
from genpol.finetuning.samples import read_evaluation, save_evaluation
from genpol.finetuning.win_rate import win_rate
from genpol.reports.page import duration
from offline.files import disk_errors, write_beside


@dataclass
class Beside:
    """The controls of one run.

    Attributes:
        tuner: whose untrained pipeline draws them.
        samples: the run's folder of samples.
        count: held-out prompts of the final evaluation.
        most: candidates of each prompt, as asked for; None for as many as reward calls allow, up
            to a cap by model; 0 for none.
        model: the model's name.
        scales: guidance scales; the run's own is left out, as it is the evaluation before.
    """

    tuner: Finetuner
    samples: Path
    count: int
    most: int | None
    model: str | None
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        cfg = self.tuner.config
        self.prompts = self.tuner.prompts.held_out(self.count, cfg.seed)
        own = self.tuner.policy.guidance_scale
        # Scales of at most 1 are no guidance, and all the same.
        self.scales = tuple(s for s in self.scales if s != own and max(s, own) > 1)
        if not self.tuner.rewarded:  # pairs alone: nothing to choose or to score by
            self.most, self.scales = 0, ()

    def candidates(self, reward_calls: int) -> int:
        """K, where training has spent so many reward calls; 0 for none."""
        if self.most is not None:
            return self.most
        cap = CAPS.get(self.model or "tiny", CAP)
        # Training on stored preferences spends no calls: the cap then stands alone.
        return min(equal_k(reward_calls, len(self.prompts)), cap) if reward_calls else cap

    def announcement(
        self, reward_calls: int, seconds_per_image: float, *, already: bool = False
    ) -> str:
        """What is going to be drawn beside the result, and about how long it takes; "" for nothing.

        Args:
            reward_calls: that training is going to spend, or has spent.
            seconds_per_image: of an evaluation, scores included.
            already: training has ended.
        """
        k, n = self.candidates(reward_calls), len(self.prompts)
        images = max(k - 1, 0) * n + len(self.scales) * n
        if not images:
            return ""
        family, own = self.tuner.policy.family, self.tuner.policy.guidance_scale
        dearer = sum(2 if family.guided(s) and not family.guided(own) else 1 for s in self.scales)
        parts = [f"the best of {k} candidates"] if k > 1 else []
        if self.scales:
            parts.append(f"guidance scale {', '.join(f'{s:g}' for s in self.scales)}")
        seconds = seconds_per_image * n * (max(k - 1, 0) + dearer)
        what = f"images of the untrained pipeline for comparison ({'; '.join(parts)})"
        if already:
            return f"drawing {images:,} {what}, about {duration(seconds)}"
        return (
            f"after training, {images:,} {what} are drawn, in about {duration(seconds)}; "
            "--best-of-k 0 and --guidance-control none leave them out"
        )

    def lines(self, controls: Mapping[str, Mapping[str, Floats]], reward_calls: int) -> list[str]:
        """What the largest best of K and each guidance scale got, a line each."""
        ks = [name for name in controls if name.startswith("best_of_")]
        shown_ones = [name for name in controls if name not in ks[:-1]]
        found = []
        for name in shown_ones:
            means = (f"{reward} {v.mean():.4f}" for reward, v in controls[name].items())
            found.append(f"untrained, {label(name)}: {', '.join(means)}")
        k, n = self.candidates(reward_calls), len(self.prompts)
        if k and reward_calls and k < (equal := equal_k(reward_calls, n)):
            found.append(
                f"the best of {k} asked the reward {k * n:,} times and training {reward_calls:,} "
                f"times; for as many, --resume {self.samples.parent} --best-of-k {equal}"
            )
        return found

    # -- drawing ----------------------------------------------------------------------------------

    def draw(self, reward_calls: int, tick: Tick | None = None) -> dict[str, dict[str, Floats]]:
        """Draw what is not there yet; control -> reward -> (n,) scores.

        Controls are named "best_of_4" and "guidance_3", the best of K last of its kind.

        Raises:
            Stopped: `tick` said so; what was drawn is kept.
            InputError: a reward failed, or the disk refused.
        """
        found: dict[str, dict[str, Floats]] = {}
        k = self.candidates(reward_calls)
        if k:
            best = self._begun()
            if best is None or best.count < k:
                best = best_of_k(self.tuner, k, self.count, start=best, save=self._keep, tick=tick)
            for some in (*(s for s in SMALL if s < k), k):
                scores = best.chosen(some)
                # Pictures are those of all candidates there are, which an earlier, longer run drew.
                pictures = best.images if some == best.count else best.images[:0]
                self._save(f"best_of_{some}", Evaluation(pictures, self.prompts, _tensors(scores)))
                found[f"best_of_{some}"] = scores
        for scale in self.scales:
            name = f"guidance_{scale:g}"
            drawn = self.tuner.ranks.by_main(partial(self._drawn, name))
            if drawn is None:
                result = at_guidance(self.tuner, scale, self.count, tick=tick)
                self._save(name, result)
                drawn = {n: np.asarray(v, np.float64) for n, v in result.rewards.items()}
            found[name] = drawn
        return found

    def _begun(self) -> BestOf | None:
        """`start`, which only the first process can say, in all of them."""
        ranks = self.tuner.ranks
        there = self.start() if ranks.main else None
        scores = ranks.broadcast(None if there is None else there.scores)
        if there is not None or scores is None:
            return there
        return BestOf(self.prompts, scores, torch.empty(0, 3, 1, 1))

    def start(self) -> BestOf | None:
        """Candidates that there are: those kept, or the first one from the evaluation before."""
        try:
            with safe_open(self._kept, "pt") as file:
                about, tensors = file.metadata() or {}, {n: file.get_tensor(n) for n in file.keys()}
            if about.get("of") == self._identity():
                images = tensors.pop("images").float() / 255
                scores = {n.removeprefix("scores."): v.numpy() for n, v in tensors.items()}
                return BestOf(self.prompts, scores, images)
            print(f"{self._kept} is of other prompts or rewards; its candidates are drawn again")
        except FileNotFoundError:
            pass
        except (SafetensorError, OSError, KeyError) as error:
            print(f"{self._kept} cannot be read ({shown(error)}); its candidates are drawn again")
        return self._before()

    def _before(self) -> BestOf | None:
        scores = self._drawn("before")
        if scores is None:
            return None
        pictures = read_evaluation(self.samples / "evaluation_before.csv").pictures
        try:
            images = [torch.from_numpy(np.array(Image.open(path))) for path in pictures]
        except OSError:
            return None
        stacked = torch.stack(images).permute(0, 3, 1, 2).float() / 255
        return BestOf(self.prompts, {n: v[None] for n, v in scores.items()}, stacked)

    def _drawn(self, name: str) -> dict[str, Floats] | None:
        """Scores of an evaluation of these prompts by these rewards; None if it is not there."""
        try:
            found = read_evaluation(self.samples / f"evaluation_{name}.csv")
        except (OSError, ValueError, KeyError, IndexError):
            return None
        same = found.prompts == self.prompts and list(found.scores) == self._names
        return found.scores if same else None

    @property
    def _kept(self) -> Path:
        return self.samples / "candidates.safetensors"

    @property
    def _names(self) -> list[str]:
        return ["reward", *self.tuner.gold]

    def _identity(self) -> str:
        words = [list(map(str, self.prompts)), self._names]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()

    def _keep(self, found: BestOf) -> None:
        if not self.tuner.ranks.main:
            return
        tensors = {f"scores.{n}": torch.from_numpy(v.copy()) for n, v in found.scores.items()}
        tensors["images"] = (found.images * 255).round().to(torch.uint8).contiguous()
        data = save(tensors, {"of": self._identity()})
        with disk_errors(f"cannot write {self._kept}", "Free some space; continue with --resume"):
            self.samples.mkdir(parents=True, exist_ok=True)
            write_beside(self._kept, data)

    def _save(self, name: str, result: Evaluation) -> None:
        if self.tuner.ranks.main:
            save_evaluation(self.samples, name, result)


def label(name: str) -> str:
    """A control's name in words: "best of 4", "guidance 3"."""
    return name.replace("_", " ")


def numbers(
    before: Mapping[str, Floats] | None,
    after: Mapping[str, Floats],
    controls: Mapping[str, Mapping[str, Floats]],
) -> dict[str, float]:
    """Entries of summary.json: means of the controls, and how often the trained pipeline wins.

    Args:
        before: reward -> (n,) of the evaluation before training; None where it is not known.
        after: the same after training, of the same prompts.
        controls: as `Beside.draw` returns them.
    """
    found: dict[str, float] = {}
    against = {"win_rate": before} if before is not None else {}
    for name, scores in controls.items():
        n = len(scores["reward"])
        means = {reward: float(values.mean()) for reward, values in scores.items()}
        found |= {f"eval/{name}/{reward}": mean for reward, mean in means.items()}
        if name.startswith("best_of_"):  # the last one is the largest
            k = int(name.removeprefix("best_of_"))
            found |= {f"eval/best_of_k/{reward}": mean for reward, mean in means.items()}
            found |= {"eval/best_of_k/k": k, "eval/best_of_k/reward_calls": k * n}
            against["win_rate_best_of_k"] = scores
        else:
            against[f"win_rate_{name}"] = scores
    for name, scores in against.items():
        for reward, values in scores.items():
            if reward in after:
                rate = win_rate(after[reward], values)
                found[f"eval/{name}/{reward}"] = rate.share
                found[f"eval/{name}/{reward}_low"] = rate.low
                found[f"eval/{name}/{reward}_high"] = rate.high
    return found


def _tensors(scores: Mapping[str, Floats]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values.copy()) for name, values in scores.items()}
