"""Outputs of a fine-tuning run and their schedule: rows, grids, checkpoints, weights, summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt
from torch import Tensor

from diffusion.errors import InputError, RewardError
from diffusion.finetune import Finetuner
from diffusion.measures import Evaluation
from diffusion.parts import gathered
from diffusion.trained_weights import SwapWeights
from genpol.finetuning.beside import Beside, numbers
from genpol.finetuning.control_options import parse_scales
from genpol.finetuning.export import save_weights
from genpol.finetuning.page import PAGE, write_page
from genpol.finetuning.samples import (
    PICTURES,
    before_after_picture,
    read_evaluation,
    save_evaluation,
)
from genpol.finetuning.stopping import Watch
from genpol.reports.grids import grid
from genpol.runs.run import Run
from genpol.runs.state_tree import fitting
from offline.errors import Diverged

Floats = NDArray[np.float64]
PAGE_EVERY = 30.0  # seconds between two pages of a run that is under way, at least


class _Values(BaseModel):
    """What a checkpoint says beside its tensors."""

    model_config = ConfigDict(strict=True)

    epoch: NonNegativeInt
    updates: NonNegativeInt
    before: dict[str, float]
    seconds: FiniteFloat
    cpu_seconds: FiniteFloat = 0.0  # older checkpoints do not know it


class Session:
    """What one run writes, and when; the numbers come from the tuner.

    With a `watch`, the weights that users load are those of the best evaluation.

    In a run of several processes each has one, and all call the same methods; the first one writes.
    """

    def __init__(
        self,
        tuner: Finetuner,
        run: Run,
        *,
        checkpoint_every: int,
        keep_checkpoints: int,
        about: Mapping[str, str] | None = None,
        kohya: bool = False,
        watch: Watch | None = None,
        model: str | None = None,
        best_of_k: int | None = None,
        guidance_control: str | None = None,
    ) -> None:
        self.tuner, self.run, self.config = tuner, run, tuner.config
        self.ranks = tuner.ranks
        self.checkpoint_every, self.keep_checkpoints = checkpoint_every, keep_checkpoints
        self.about, self.kohya = about or {}, kohya
        self.before: dict[str, float] = {}
        self.watch = watch
        self.seconds, self.mark = 0.0, time.perf_counter()
        self.cpu_seconds, self.cpu_mark = 0.0, time.process_time()
        self.saved_epoch = self.logged_epoch = -1
        self.page_at = self.mark
        scales = parse_scales(guidance_control, model)
        samples = run.folder / "samples"
        self.beside = Beside(tuner, samples, self.final_images, best_of_k, model, scales)

    @property
    def final_images(self) -> int:
        return self.config.final_eval_images or self.config.eval_images

    @property
    def stopped(self) -> bool:
        """Whether the watched reward has fallen often enough."""
        return self.watch is not None and self.watch.stopped

    def stop_note(self) -> str:
        assert self.watch is not None
        return f"stopped early, after epoch {self.tuner.epoch}: {self.watch.reason()}"

    def see(self, result: Evaluation) -> dict[str, float]:
        """Show an evaluation of the current weights to the watch; what to log."""
        if self.watch is None:
            return {}
        with self.tuner.trained.averaged():
            weights = dict(self.tuner.trained.parameters)
            return self.watch.see(self.tuner.epoch, result.rewards, weights)

    def elapsed(self) -> float:
        """Seconds spent, earlier sittings included; brings `cpu_seconds` up to date as well."""
        now = time.perf_counter()
        self.seconds, self.mark = self.seconds + now - self.mark, now
        now = time.process_time()
        self.cpu_seconds, self.cpu_mark = self.cpu_seconds + now - self.cpu_mark, now
        return self.seconds

    def restore(self) -> None:
        """Go back to the newest checkpoint, if there is one; rows logged after it are dropped.

        Raises:
            InputError: none can be read, or it is not of this run.
        """
        stored: dict[str, Tensor] = {}

        def read() -> tuple[int, dict[str, Any]] | None:
            found = self.run.latest_checkpoint()
            if found is None:
                return None
            stored.update(found[1])
            return found[0], found[2]

        about = self.ranks.by_main(read)
        if about is None:
            self.run.truncate(-1)
            return
        step, values = about
        tensors = self.ranks.broadcast_tensors(stored, self.tuner.trained.part_of)
        with fitting(f"the checkpoint of epoch {step} in {self.run.folder} does not fit this run"):
            state = _Values.model_validate(values)
            if state.epoch != step:
                raise ValueError(f"it holds the state of epoch {state.epoch}")
            self.tuner.load_state(tensors, values)
            if self.watch is not None:
                self.watch.load_state(tensors, values.get("watch"))
        self.before, self.seconds = state.before, state.seconds
        self.cpu_seconds = state.cpu_seconds
        self.saved_epoch = step
        self.run.truncate(step)

    def begin(self, checks: dict[str, float]) -> None:
        """Evaluate and picture the untouched pipeline."""
        started = time.perf_counter()
        result = self.tuner.evaluate(self.final_images)
        each = (time.perf_counter() - started) / max(1, len(result.prompts))
        self.before = means(result)
        rows = {f"eval/{k}": v for k, v in self.before.items()} | self.see(result)
        self.run.log(0, rows | checks)
        self.picture(0, result)
        self.keep("before", result)
        self.save()
        cfg = self.config
        calls = cfg.epochs * cfg.prompts_per_epoch * cfg.images_per_prompt
        if words := self.beside.announcement(calls, each):
            print(words)

    def after_epoch(self, metrics: dict[str, float]) -> None:
        """Log, and evaluate and save when it is time."""
        epoch, cfg = self.tuner.epoch, self.config
        metrics = metrics | {"time/seconds": self.elapsed()}
        metrics["time/cpu_seconds"] = self.cpu_seconds
        last = epoch == cfg.epochs
        if epoch % cfg.eval_every == 0 and (self.watch is not None or not last):
            result = self.tuner.evaluate(cfg.eval_images)
            metrics |= {f"eval/{k}": v for k, v in means(result).items()} | self.see(result)
            self.picture(epoch, result)
        self.run.log(epoch, metrics)
        self.logged_epoch = epoch
        if epoch % cfg.eval_every == 0 and not last:
            self.write_page(least=PAGE_EVERY)
        if epoch % self.checkpoint_every == 0 or last or self.stopped:
            self.save()

    def save(self) -> None:
        """Write a checkpoint and the weights users load, whole or not at all."""
        tensors, values = self.tuner.state()
        values |= {"before": self.before, "seconds": self.elapsed()}
        if self.watch is not None:
            best, values["watch"] = self.watch.state()
            tensors = tensors | best
        values["cpu_seconds"] = self.cpu_seconds
        epoch = self.tuner.epoch
        whole = gathered(tensors, self.ranks.main)
        self.run.save_checkpoint(epoch, whole, values, self.keep_checkpoints)
        self.saved_epoch = epoch
        self.save_for_users()

    def save_for_users(self) -> None:
        """Write the weights users load: the best with a watch, else the average or the last; with
        what a LoRA's file says of itself."""
        trained = self.tuner.trained
        steps = {"ss_steps": trained.updates, "ss_epoch": self.tuner.epoch}
        about = {**self.about, **{name: str(value) for name, value in steps.items()}}
        best = {} if self.watch is None else self.watch.weights
        with SwapWeights(trained.parameters, best) if best else trained.averaged():
            write = self.ranks.main
            save_weights(self.tuner.policy, self.run.folder, about, kohya=self.kohya, write=write)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Errors inside say what is kept, and how to go on.

        A reward that fails, as a server may, costs no epoch that has ended: it is saved first.
        """
        try:
            yield
        except (InputError, Diverged) as error:
            ended = self.logged_epoch == self.tuner.epoch > self.saved_epoch
            if isinstance(error, RewardError) and ended:
                self.save()
            said = type(error)(f"{error} [{self.checkpoint_note()}]")
            said.__dict__.update(error.__dict__)  # who says it
            raise said from error

    def checkpoint_note(self) -> str:
        if self.saved_epoch < 0:
            return "no checkpoint had been written yet"
        kept = f"checkpoint of epoch {self.saved_epoch} is kept"
        return f"{kept}; continue with --resume {self.run.folder}"

    def picture(self, epoch: int, result: Evaluation) -> None:
        """Save the fixed-seed sample grid, each image with its prompt; none without images."""
        if not len(result.images):
            return
        when = f"after {epoch} epochs of fine-tuning" if epoch else "before fine-tuning"
        shown = grid(
            result.images[:PICTURES], result.prompts[:PICTURES], title=f"Held-out prompts, {when}"
        )
        self.run.log_images(epoch, "samples/grid", shown)

    def keep(self, when: str, result: Evaluation) -> None:
        """Write an evaluation's table and pictures; nothing of one without images."""
        if result.prompts and self.ranks.main:
            save_evaluation(self.run.folder / "samples", when, result)

    def finish(self, tick: Callable[[], bool] | None = None) -> dict[str, float]:
        """Evaluate as before training, draw what stands beside the result, write summary.json, the
        before/after grid and the page.

        Raises:
            Stopped: `tick` said so while controls were drawn. All else is written; a resumed run
                goes on with them.
        """
        started = time.perf_counter()
        epoch, watch, samples = self.tuner.epoch, self.watch, self.run.folder / "samples"
        if watch is None or watch.seen != epoch or watch.epoch == epoch:
            result = self.tuner.evaluate(self.final_images)
            more = {} if watch is None or watch.seen == epoch else self.see(result)
            self.run.log(epoch, {f"eval/{k}": v for k, v in means(result).items()} | more)
            self.picture(epoch, result)
        of = epoch if watch is None else watch.epoch
        if watch is not None:
            self.save_for_users()
            if of != epoch:
                result = self.tuner.evaluate(self.final_images, watch.weights)
        each = (time.perf_counter() - started) / max(1, len(result.prompts))
        after = means(result)
        self.keep("after", result)
        shown = result.prompts and self.ranks.main
        picture = before_after_picture(samples, of) if shown else None
        if picture is not None:
            self.run.log_images(epoch, "samples/before_after", picture)
        before, scores = self.scores_before(result.prompts), floats(result)
        summary = self.summary(after, len(result.prompts)) | numbers(before, scores, {})
        self.run.summary(summary)
        calls = self.tuner.reward_calls
        if words := self.beside.announcement(calls, each, already=True):
            self.write_page()  # of the training alone, for whom the controls take too long
            print(words)
        controls = self.beside.draw(calls, tick)
        summary = self.summary(after, len(result.prompts)) | numbers(before, scores, controls)
        self.run.summary(summary)
        self.write_page()
        for line in self.beside.lines(controls, calls):
            print(line)
        kind = "lora" if self.config.train == "lora" else "unet"
        if watch is not None:
            how = self.stop_note() if summary["stop/early"] else f"all {epoch} epochs ran"
            print(f"{how}; the weights in {kind}/ are those of {watch.name}'s best, epoch {of}")
        print(
            f"{outcome(self.before, after, result)}{wins(summary)}; weights in "
            f"{self.run.folder / kind}; everything about the run in {self.run.folder / PAGE}"
        )
        return self.ranks.broadcast(summary)

    def summary(self, after: dict[str, float], images: int) -> dict[str, float]:
        """What summary.json says of the training itself."""
        found = {f"eval/{k}_before": v for k, v in self.before.items()}
        found |= {f"eval/{k}_after": v for k, v in after.items()}
        if self.watch is not None:
            found |= {
                "stop/weights_epoch": float(self.watch.epoch),
                "stop/early": float(self.tuner.epoch < self.config.epochs),
            }
        return found | {
            "eval/images": float(images),
            "train/epochs": float(self.tuner.epoch),
            "train/reward_calls": float(self.tuner.reward_calls),
            "time/seconds": self.elapsed(),
            "time/cpu_seconds": self.cpu_seconds,
        }

    def scores_before(self, prompts: list[str]) -> dict[str, Floats] | None:
        """Scores of the evaluation before training; None where it was not of these prompts."""
        path = self.run.folder / "samples" / "evaluation_before.csv"
        if not self.ranks.main or not path.is_file():
            return None
        found = read_evaluation(path)
        return found.scores if found.prompts == prompts else None

    def write_page(self, *, least: float = 0.0) -> None:
        """Write the run's page, unless it is less than `least` seconds old."""
        now = time.perf_counter()
        if self.ranks.main and now - self.page_at >= least:
            write_page(self.run.folder)
            self.page_at = now


def outcome(before: dict[str, float], after: dict[str, float], result: Evaluation) -> str:
    """What a run has changed, in one line."""
    said = []
    if "implicit_accuracy" in after:
        said.append(
            f"held-out implicit accuracy {before['implicit_accuracy']:.4f} -> "
            f"{after['implicit_accuracy']:.4f} on {after['pairs']:.0f} pairs"
        )
    if "reward" in after:
        said.append(
            f"held-out reward {before['reward']:.4f} -> {after['reward']:.4f} "
            f"on {len(result.prompts)} images"
        )
    return "; ".join(said)


def means(result: Evaluation) -> dict[str, float]:
    """Mean of every evaluated reward, and what else was measured."""
    return {n: float(values.mean()) for n, values in result.rewards.items()} | result.measures


def floats(result: Evaluation) -> dict[str, Floats]:
    """Every evaluated reward as (n,) float64."""
    return {name: np.asarray(values, np.float64) for name, values in result.rewards.items()}


def wins(summary: dict[str, float]) -> str:
    """How often the trained pipeline's picture has the higher reward, for the last line."""
    words = []
    for name, other in (("win_rate", "before"), ("win_rate_best_of_k", "the best of {k}")):
        share, low, high = (
            summary.get(f"eval/{name}/reward{end}") for end in ("", "_low", "_high")
        )
        if share is not None and low is not None and high is not None:
            of = other.format(k=f"{summary.get('eval/best_of_k/k', 0):.0f}")
            words.append(f"{share:.0%} [{low:.0%}, {high:.0%}] against {of}")
    return f", won {', '.join(words)}" if words else ""
