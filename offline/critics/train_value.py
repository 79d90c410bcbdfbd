"""`train_value`: trains a value function for steering on a dataset of episodes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.critics.calql import CalQL
from offline.critics.iql import IQL
from offline.critics.value import ValueFunction
from offline.critics.value_config import ValueConfig
from offline.critics.value_report import held_out_report
from offline.data.batch import shifted
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
from offline.data.recorded_rows import LEARNT, recorded_split
from offline.data.transitions import Embed
from offline.errors import InputError

__all__ = ["ValueConfig", "ValueTraining", "train_value"]

LEARNERS: dict[str, type[CalQL] | type[IQL]] = {"calql": CalQL, "iql": IQL}


def train_value(
    episodes: Episodes,
    config: ValueConfig,
    *,
    log: Log | None = None,
    device: str = "cpu",
    language: Embed | None = None,
    stop: Callable[[], bool] | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> ValueFunction:
    """Train a critic offline; the same seed gives the same critic.

    Args:
        episodes: the dataset; its splits "train" and "valid" are honoured, else every tenth
            episode is held out.
        config: see `ValueConfig`.
        log: called with the step and its metrics, averaged since the last call; after the last
            step also with the held-out report (see `offline.critics.value_report`).
        device: where to train.
        language: embeds the instruction of an episode, such as `offline.networks.language.embed`.
        stop: asked at every step whether to leave early.
        warn: told what is worth knowing about the dataset, in one line.

    Returns:
        The target critic on `device`, in eval mode, with the last metrics in `meta["metrics"]`
        and in `meta["steps"]` how many steps it really had.

    Raises:
        InputError: a setting is out of range, the dataset has no success (sparse reward) or no
            episode long enough, an observation is unknown, or training diverged.
    """
    training = ValueTraining(episodes, config, device=device, language=language, warn=warn)
    steps = Steps(training, config.steps, log_every=config.log_every)
    steps.take(log, stop=stop)
    steps.finish(log)
    return training.result(steps)


class ValueTraining:
    """A critic that is being trained, one gradient step at a time (`Learning`).

    Args: as of `train_value`; the dataset is read once, here.
    """

    name, loss = "the critic", "critic/td_loss"

    def __init__(
        self,
        episodes: Episodes,
        config: ValueConfig,
        *,
        device: str = "cpu",
        language: Embed | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        config.check()
        self.config, self.device = config, device
        self.train, self.valid = train, valid = _read(episodes, config, language)
        self.fingerprint = joint_fingerprint(train, valid)
        warn_unseen(train, "critic", warn)
        if config.reward == "sparse" and train.failures == 0:
            warn(
                "every training episode succeeded: without failures the critic learns how fast, "
                "not whether; `genpol collect --sloppy-fraction` keeps failures"
            )
        with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
            torch.manual_seed(config.seed)
            value = ValueFunction(
                train.spec,
                train.obs_shapes,
                env=episodes.env,
                meta={
                    **dataclasses.asdict(config),
                    "dataset": fingerprint(episodes),
                    "successes": train.successes,
                    "failures": train.failures,
                    "instructions": sorted(train.instructions)[:100],
                    **({LEARNT: train.ids} if train.ids else {}),
                },
                hidden=config.hidden,
                ensemble=config.ensemble,
                image_encoder=config.image_encoder,
            ).to(device)
            value.encoder.normalizer.fit(train.obs_stats)
            self.learner = LEARNERS[config.critic](value, config)
        self.draw = Generator().manual_seed(config.seed)
        self.noise = Generator().manual_seed(config.seed + 1)

    def update(self, step: int) -> dict[str, Tensor]:
        """One update of critic and target."""
        config, draw = self.config, self.draw
        batch = shifted(self.train.sample(config.batch_size, draw), config.random_shift, draw)
        return self.learner.update(batch.to(self.device), self.noise)

    def report(self, row: Row) -> dict[str, float]:
        """What updates returned, averaged."""
        return row.means

    def final(self) -> dict[str, float]:
        """The held-out report."""
        return held_out_report(self.learner.target.eval(), self.valid, seed=self.config.seed)

    def result(self, steps: Steps) -> ValueFunction:
        """The target critic after some steps, which it says in its `meta`; see `train_value`."""
        result = self.learner.target.eval()
        result.meta |= {"steps": steps.step, "metrics": finite(steps.metrics)}
        return result

    def weights(self) -> list[Tensor]:
        """All that is learnt."""
        return self.learner.weights()

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, random streams, and where a streamed dataset stands."""
        return {
            "learner": self.learner.state_dict(),
            "train": self.train.state_dict(),
            "draw": self.draw.get_state(),
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; learning rates are the configuration's."""
        self.learner.load_state_dict(state["learner"])
        self.train.load_state_dict(state["train"])
        self.draw.set_state(state["draw"])
        set_stream(self.noise, state["noise"])


def fingerprint(episodes: Episodes) -> str:
    """Identifies a dataset: hash of its spec, its lengths and three episodes' actions."""
    text = json.dumps(episodes.spec.to_dict(), sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(np.asarray(episodes.lengths, np.int64).tobytes())
    for index in sorted({0, len(episodes) // 2, len(episodes) - 1}):
        digest.update(np.ascontiguousarray(episodes[index].actions, np.float32).tobytes())
    return digest.hexdigest()[:16]


def _read(episodes: Episodes, config: ValueConfig, language: Embed | None) -> tuple[Data, Data]:
    """Training and held-out transitions."""
    parts = by_source(episodes, lambda part: _split(part, config.seed))
    train, valid = read_parts(
        episodes,
        config,
        *parts,
        reward=config.reward,
        discount=config.discount,
        language=language,
    )
    if config.reward == "sparse" and train.successes == 0:
        raise InputError(
            f"none of the {len(train.indices)} training episodes succeeded, so the sparse reward "
            "would be the same everywhere: collect some successes, or use --reward dataset"
        )
    return train, train if valid is None else valid


def _split(episodes: Episodes, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A dataset's episodes to train on and to hold out: its own splits, else every tenth."""
    if hasattr(episodes, "decisions"):
        return recorded_split(episodes)
    splits = episodes.splits
    if "train" in splits and "valid" in splits and len(splits["valid"]):
        return splits["train"], splits["valid"]
    everything = np.asarray(splits.get("train", np.arange(len(episodes))))
    order = np.random.default_rng(seed).permutation(everything)
    held_out = len(order) // 10 or len(order)  # too few to hold any out: report on them all
    return (order[held_out:] if held_out < len(order) else order), order[:held_out]
