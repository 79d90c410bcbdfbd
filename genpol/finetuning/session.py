"""Outputs of a fine-tuning run and their schedule: rows, grids, checkpoints, weights, summary."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt

from diffusion.errors import InputError, RewardError
from diffusion.finetune import Evaluation, Finetuner
from diffusion.trained_weights import SwapWeights
from genpol.finetuning.export import save_weights
from genpol.finetuning.samples import PICTURES, before_after_picture, save_evaluation
from genpol.finetuning.stopping import Watch
from genpol.reports.grids import grid
from genpol.runs.run import Run
from genpol.runs.state_tree import fitting
from offline.errors import Diverged


class _Values(BaseModel):
    """What a checkpoint says beside its tensors."""

    model_config = ConfigDict(strict=True)

    epoch: NonNegativeInt
    updates: NonNegativeInt
    before: dict[str, float]
    seconds: FiniteFloat


class Session:
    """What one run writes, and when; the numbers come from the tuner.

    With a `watch`, the weights that users load are those of the best evaluation.
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
    ) -> None:
        self.tuner, self.run, self.config = tuner, run, tuner.config
        self.checkpoint_every, self.keep_checkpoints = checkpoint_every, keep_checkpoints
        self.about, self.kohya = about or {}, kohya
        self.before: dict[str, float] = {}
        self.watch = watch
        self.seconds, self.mark = 0.0, time.perf_counter()
        self.saved_epoch = self.logged_epoch = -1

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
        """Seconds spent, earlier sittings included."""
        now = time.perf_counter()
        self.seconds, self.mark = self.seconds + now - self.mark, now
        return self.seconds

    def restore(self) -> None:
        """Go back to the newest checkpoint, if there is one; rows logged after it are dropped.

        Raises:
            InputError: none can be read, or it is not of this run.
        """
        found = self.run.latest_checkpoint()
        if found is None:
            self.run.truncate(-1)
            return
        step, tensors, values = found
        with fitting(f"the checkpoint of epoch {step} in {self.run.folder} does not fit this run"):
            state = _Values.model_validate(values)
            if state.epoch != step:
                raise ValueError(f"it holds the state of epoch {state.epoch}")
            self.tuner.load_state(tensors, values)
            if self.watch is not None:
                self.watch.load_state(tensors, values.get("watch"))
        self.before, self.seconds = state.before, state.seconds
        self.saved_epoch = step
        self.run.truncate(step)

    def begin(self, checks: dict[str, float]) -> None:
        """Evaluate and picture the untouched pipeline."""
        result = self.tuner.evaluate(self.final_images)
        self.before = means(result)
        rows = {f"eval/{k}": v for k, v in self.before.items()} | self.see(result)
        self.run.log(0, rows | checks)
        self.picture(0, result)
        save_evaluation(self.run.folder / "samples", "before", result)
        self.save()

    def after_epoch(self, metrics: dict[str, float]) -> None:
        """Log, and evaluate and save when it is time."""
        epoch, cfg = self.tuner.epoch, self.config
        metrics = metrics | {"time/seconds": self.elapsed()}
        last = epoch == cfg.epochs
        if epoch % cfg.eval_every == 0 and (self.watch is not None or not last):
            result = self.tuner.evaluate(cfg.eval_images)
            metrics |= {f"eval/{k}": v for k, v in means(result).items()} | self.see(result)
            self.picture(epoch, result)
        self.run.log(epoch, metrics)
        self.logged_epoch = epoch
        if epoch % self.checkpoint_every == 0 or last or self.stopped:
            self.save()

    def save(self) -> None:
        """Write a checkpoint and the weights users load, whole or not at all."""
        tensors, values = self.tuner.state()
        values |= {"before": self.before, "seconds": self.elapsed()}
        if self.watch is not None:
            best, values["watch"] = self.watch.state()
            tensors = tensors | best
        epoch = self.tuner.epoch
        self.run.save_checkpoint(epoch, tensors, values, self.keep_checkpoints)
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
            save_weights(self.tuner.policy, self.run.folder, about, kohya=self.kohya)

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
            raise type(error)(f"{error} [{self.checkpoint_note()}]") from error

    def checkpoint_note(self) -> str:
        if self.saved_epoch < 0:
            return "no checkpoint had been written yet"
        kept = f"checkpoint of epoch {self.saved_epoch} is kept"
        return f"{kept}; continue with --resume {self.run.folder}"

    def picture(self, epoch: int, result: Evaluation) -> None:
        """Save the fixed-seed sample grid, each image with its prompt."""
        when = f"after {epoch} epochs of fine-tuning" if epoch else "before fine-tuning"
        shown = grid(
            result.images[:PICTURES], result.prompts[:PICTURES], title=f"Held-out prompts, {when}"
        )
        self.run.log_images(epoch, "samples/grid", shown)

    def finish(self) -> dict[str, float]:
        """Evaluate as before training, write summary.json and the before/after grid."""
        epoch, watch = self.tuner.epoch, self.watch
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
        after = means(result)
        save_evaluation(self.run.folder / "samples", "after", result)
        summary = {f"eval/{k}_before": v for k, v in self.before.items()}
        summary |= {f"eval/{k}_after": v for k, v in after.items()}
        summary |= {
            "eval/images": float(len(result.images)),
            "train/epochs": float(epoch),
            "time/seconds": self.elapsed(),
        }
        if watch is not None:
            summary |= {
                "stop/weights_epoch": float(of),
                "stop/early": float(epoch < self.config.epochs),
            }
        self.run.summary(summary)
        picture = before_after_picture(self.run.folder / "samples", of)
        if picture is not None:
            self.run.log_images(epoch, "samples/before_after", picture)
        kind = "lora" if self.config.train == "lora" else "unet"
        if watch is not None:
            how = self.stop_note() if summary["stop/early"] else f"all {epoch} epochs ran"
            print(f"{how}; the weights in {kind}/ are those of {watch.name}'s best, epoch {of}")
        print(
            f"held-out reward {self.before['reward']:.4f} -> {after['reward']:.4f} "
            f"on {len(result.images)} images; weights in {self.run.folder / kind}"
        )
        return summary


def means(result: Evaluation) -> dict[str, float]:
    """Mean of every evaluated reward, and what else was measured."""
    return {n: float(values.mean()) for n, values in result.rewards.items()} | result.measures
