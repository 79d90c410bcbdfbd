"""Behaviour cloning: one of our policies learns the chunks of a dataset."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from genpol.policies.architecture import Architecture
from genpol.policies.cloning_config import CloneConfig
from genpol.policies.policy import MAX_GRAD_NORM, ChunkPolicy
from offline.data.batch import Batch
from offline.data.dataset_training import Row, finite, read_parts, take_steps, warn_unseen
from offline.data.episodes import Episodes
from offline.data.transitions import Embed, Transitions
from offline.errors import InputError
from offline.networks.images import random_shift
from offline.networks.normalizer import image_keys

__all__ = ["CloneConfig", "clone"]

Log = Callable[[int, dict[str, float]], None]
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
        log: called with the step and its metrics, every `log_every` steps and after the last:
            clone/loss        the policy's loss, averaged since the last call
            clone/valid_loss  the average weights' loss on held-out chunks, if any
            clone/valid_mode_error  mean |mode - action| there, normalised
            clone/lr, clone/grad_norm
            clone/step_ms     milliseconds per step
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
    config.check()
    train, valid = _read(episodes, config, language)
    warn_unseen(train, "policy", warn)
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        torch.manual_seed(config.seed)
        policy = _make(episodes, train, config).to(device)
    policy.encoder.normalizer.fit(train.obs_stats)
    average = copy.deepcopy(policy).eval().requires_grad_(False)
    weights = list(policy.parameters())
    optimizer = torch.optim.AdamW(
        weights, lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    draw = Generator().manual_seed(config.seed)
    noise = Generator(device).manual_seed(config.seed + 1)
    images = image_keys(policy.obs_shapes)
    held_out = None
    if valid is not None:
        size = HELD_OUT_IMAGES if images else HELD_OUT
        held_out = valid.sample(size, Generator().manual_seed(0))

    def update(step: int) -> dict[str, Tensor]:
        batch = train.sample(config.batch_size, draw)
        obs = {
            key: random_shift(value, config.random_shift, draw) if key in images else value
            for key, value in batch.obs.items()
        }
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        obs = {key: value.to(device) for key, value in obs.items()}
        loss = policy.loss(obs, batch.act.to(device), noise).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        average.follow(policy, step, config.ema)
        return {"clone/loss": loss.detach(), "clone/grad_norm": norm}

    def report(row: Row) -> dict[str, float]:
        metrics = {
            "clone/loss": row.means["clone/loss"],
            **_held_out(average, held_out, device),
            "clone/lr": learning_rate(row.step - 1, config),
            "clone/grad_norm": float(row.latest["clone/grad_norm"]),
            "clone/step_ms": 1e3 * row.seconds,
        }
        if log:
            log(row.step, metrics)
        return metrics

    steps, metrics = take_steps(
        config.steps,
        update,
        report,
        log_every=config.log_every,
        loss="clone/loss",
        learner="cloning",
        stop=stop,
    )
    average.meta |= {"steps": steps, "metrics": finite(metrics)}
    return average


def learning_rate(step: int, config: CloneConfig) -> float:
    """Linear warm-up, then half a cosine that reaches zero after the last step."""
    warmup = min(config.warmup, config.steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / (config.steps - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def _make(episodes: Episodes, train: Transitions, config: CloneConfig) -> ChunkPolicy:
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
) -> tuple[Transitions, Transitions | None]:
    """Training chunks, and held-out ones where the dataset has a split for them."""
    splits = episodes.splits
    train = np.asarray(splits.get("train", np.arange(len(episodes))))
    valid = np.asarray(splits.get("valid", [])) if "train" in splits else np.empty(0)
    if config.filter == "success":
        total = len(train)
        train, valid = _successful(episodes, train), _successful(episodes, valid)
        if not len(train):
            raise InputError(
                f"none of the {total} training episodes is marked as a success: collect some, or "
                "clone all with --filter all"
            )
    return read_parts(episodes, config, train, valid, reward="none", language=language)


def _successful(episodes: Episodes, indices: np.ndarray) -> np.ndarray:
    return np.asarray([i for i in indices if episodes[int(i)].success is True], np.int64)


@torch.no_grad()
def _held_out(policy: ChunkPolicy, batch: Batch | None, device: str) -> dict[str, float]:
    """Loss and error of the mode on held-out chunks, with the same noise every time."""
    if batch is None:
        return {}
    obs = {key: value.to(device) for key, value in batch.obs.items()}
    act: Tensor = batch.act.to(device)
    loss = policy.loss(obs, act, Generator(device).manual_seed(0)).mean()
    error = (policy.mode(obs) - act).abs().mean()
    return {"clone/valid_loss": float(loss), "clone/valid_mode_error": float(error)}
