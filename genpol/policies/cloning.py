"""Behaviour cloning: one of our policies learns the chunks of a dataset."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from genpol.policies.architecture import Architecture
from genpol.policies.cloning_config import CloneConfig
from genpol.policies.policy import MAX_GRAD_NORM, ChunkPolicy
from offline.data.batch import Batch
from offline.data.dataset_training import (
    Log,
    Row,
    Steps,
    finite,
    joint_fingerprint,
    read_parts,
    set_stream,
    warn_unseen,
)
from offline.data.episodes import Episodes
from offline.data.joined import by_source
from offline.data.mixed_transitions import Data
from offline.data.transitions import Embed
from offline.draws import moved
from offline.errors import InputError
from offline.networks.images import random_shift
from offline.networks.normalizer import image_keys
from offline.networks.optimizers import load_optimizer

__all__ = ["CloneConfig", "Cloning", "clone"]

HELD_OUT, HELD_OUT_IMAGES = 1024, 128  # chunks that the held-out loss is estimated on


def clone(
    episodes: Episodes,
    config: CloneConfig,
    *,
    log: Log | None = None,
    device: str = "cpu",
    language: Embed | None = None,
    stop: Callable[[], bool] | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> ChunkPolicy:
    """Clone a dataset; the same seed gives the same policy.

    Args:
        episodes: the dataset; trains on its split "train" and reports on "valid", where it has
            them.
        config: see `CloneConfig`.
        log: called with the step and its metrics, every `log_every` steps and after the last; see
            `Cloning.report`.
        device: where to train.
        language: embeds the instruction of an episode, such as `offline.networks.language.embed`.
        stop: asked at every step whether to leave early.
        warn: told what is worth knowing about the dataset, in one line.

    Returns:
        The average of the weights on `device`, in eval mode and without gradients, with the last
        metrics in `meta["metrics"]` and in `meta["steps"]` how many steps it really had.

    Raises:
        InputError: a setting is out of range, the dataset has no success (filter "success") or no
            episode long enough, an observation is unknown, or training diverged.
    """
    cloning = Cloning(episodes, config, device=device, language=language, warn=warn)
    steps = Steps(cloning, config.steps, log_every=config.log_every)
    steps.take(log, stop=stop)
    if steps.complete:
        steps.finish(log)
    return cloning.result(steps)


class Cloning:
    """A policy that is being cloned, one gradient step at a time (`Learning`).

    Args: as of `clone`; the dataset is read once, here.
    """

    name, loss = "cloning", "clone/loss"

    def __init__(
        self,
        episodes: Episodes,
        config: CloneConfig,
        *,
        device: str = "cpu",
        language: Embed | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        config.check()
        self.config, self.device = config, device
        self.train, valid = _read(episodes, config, language)
        self.fingerprint = joint_fingerprint(self.train, valid)
        warn_unseen(self.train, "policy", warn)
        with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
            torch.manual_seed(config.seed)
            self.policy = _make(episodes, self.train, config).to(device)
        self.policy.encoder.normalizer.fit(self.train.obs_stats)
        self.average = copy.deepcopy(self.policy).eval().requires_grad_(False)
        self.params = list(self.policy.parameters())
        self.optimizer = torch.optim.AdamW(
            self.params, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.draw = Generator().manual_seed(config.seed)
        self.noise = Generator().manual_seed(config.seed + 1)
        self.images = image_keys(self.policy.obs_shapes)
        self.held_out: Batch | None = None
        if valid is not None:
            size = HELD_OUT_IMAGES if self.images else HELD_OUT
            self.held_out = valid.sample(size, Generator().manual_seed(0))

    def update(self, step: int) -> dict[str, Tensor]:
        """One gradient step, and one of the average."""
        config, draw = self.config, self.draw
        batch = self.train.sample(config.batch_size, draw)
        obs = {
            key: random_shift(value, config.random_shift, draw) if key in self.images else value
            for key, value in batch.obs.items()
        }
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        obs = {key: moved(value, self.device) for key, value in obs.items()}
        loss = self.policy.loss(obs, moved(batch.act, self.device), self.noise).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.params, MAX_GRAD_NORM)
        self.optimizer.step()
        self.average.follow(self.policy, step, config.ema)
        return {"clone/loss": loss.detach(), "clone/grad_norm": norm}

    def report(self, row: Row) -> dict[str, float]:
        """The metrics of a row:

        clone/loss        the policy's loss, averaged since the row before
        clone/valid_loss  the average weights' loss on held-out chunks, if any
        clone/valid_mode_error  mean |mode - action| there, normalised
        clone/lr, clone/grad_norm
        clone/step_ms     milliseconds per step
        """
        return {
            "clone/loss": row.means["clone/loss"],
            **_held_out(self.average, self.held_out, self.device),
            "clone/lr": learning_rate(row.step - 1, self.config),
            "clone/grad_norm": float(row.latest["clone/grad_norm"]),
            "clone/step_ms": 1e3 * row.seconds,
        }

    def final(self) -> dict[str, float]:
        """Nothing that rows do not say."""
        return {}

    def result(self, steps: Steps) -> ChunkPolicy:
        """The policy after some steps, which it says in its `meta`; see `clone`."""
        self.average.meta |= {"steps": steps.step, "metrics": finite(steps.metrics)}
        return self.average

    def weights(self) -> list[Tensor]:
        """All that is learnt."""
        return [*self.params, *self.average.parameters()]

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser, random streams, and where a streamed dataset stands."""
        return {
            "policy": self.policy.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "train": self.train.state_dict(),
            "draw": self.draw.get_state(),
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; the learning rate is the configuration's."""
        for name in ("policy", "average", "train"):
            getattr(self, name).load_state_dict(state[name])
        load_optimizer(self.optimizer, state["optimizer"])
        self.draw.set_state(state["draw"])
        set_stream(self.noise, state["noise"])


def learning_rate(step: int, config: CloneConfig) -> float:
    """Linear warm-up, then half a cosine that reaches zero after the last step."""
    warmup = min(config.warmup, config.steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / (config.steps - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def _make(episodes: Episodes, train: Data, config: CloneConfig) -> ChunkPolicy:
    sizes = {f.name for f in dataclasses.fields(Architecture)}
    settings = dataclasses.asdict(config)
    return ChunkPolicy(
        config.policy,
        train.spec,
        train.obs_shapes,
        env=episodes.env,
        meta={
            **settings,
            "episodes": len(train.indices),
            "chunks": len(train),
            "instructions": sorted(train.instructions)[:100],
        },
        architecture=Architecture(**{k: v for k, v in settings.items() if k in sizes}),
    )


def _read(
    episodes: Episodes, config: CloneConfig, language: Embed | None
) -> tuple[Data, Data | None]:
    """Training chunks, and held-out ones where the dataset has a split for them."""
    train, valid = by_source(episodes, _split)
    if config.filter == "success":
        total = len(train)
        train, valid = _successful(episodes, train), _successful(episodes, valid)
        if not len(train):
            raise InputError(
                f"none of the {total} training episodes is marked as a success: collect some, or "
                "clone all with --filter all"
            )
    return read_parts(episodes, config, train, valid, reward="none", language=language)


def _split(episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    splits = episodes.splits
    train = np.asarray(splits.get("train", np.arange(len(episodes))))
    valid = splits.get("valid", ()) if "train" in splits else ()
    return train, np.asarray(valid, np.int64)


def _successful(episodes: Episodes, indices: np.ndarray) -> np.ndarray:
    return np.asarray([i for i in indices if episodes[int(i)].success is True], np.int64)


@torch.no_grad()
def _held_out(policy: ChunkPolicy, batch: Batch | None, device: str) -> dict[str, float]:
    """Loss and error of the mode on held-out chunks, with the same noise every time."""
    if batch is None:
        return {}
    obs = {key: value.to(device) for key, value in batch.obs.items()}
    act: Tensor = batch.act.to(device)
    loss = policy.loss(obs, act, Generator().manual_seed(0)).mean()
    error = (policy.mode(obs) - act).abs().mean()
    return {"clone/valid_loss": float(loss), "clone/valid_mode_error": float(error)}
