"""mbrl-lib's MBPO on Hopper, timed, with everything it did counted; prints one line of JSON.

It imports nothing of this repository, for mbrl 0.2.0 (facebookresearch/mbrl-lib, the last release)
pins packages that do not go together with ours. It is run by the Python of an environment of its
own; torch, numpy, gymnasium and mujoco are those of the repository's constraints, so that both
sides compute with the same libraries and step the same simulator:

    python3.11 -m venv /path/to/mbrl_env
    /path/to/mbrl_env/bin/pip install torch==2.13.0
    /path/to/mbrl_env/bin/pip install numpy==2.4.6 gymnasium==1.4.0 mujoco==3.3.0 \\
        hydra-core==1.3.2 omegaconf==2.3.0 termcolor==3.3.0 tqdm==4.70.1 imageio==2.38.1
    /path/to/mbrl_env/bin/pip install --no-deps mbrl==0.2.0
    OMP_NUM_THREADS=1 /path/to/mbrl_env/bin/python scripts/mbrl_peer.py --steps 500

torch comes first, for nothing else may choose its version; `--no-deps`, because of the pins:

- hydra-core 1.0.3 and omegaconf 2.0 cannot be imported by Python 3.11 ("mutable default"); newer
  ones can, but build nested configurations by themselves, which mbrl's classes want to do: the
  configuration below says `_recursive_: False` where that matters.
- gymnasium 0.26.3 needs `np.bool8`, which numpy 2 has not, and its Hopper a MuJoCo before 2.3.4
  ("global coordinates no longer supported"); what mbrl uses of gymnasium has not changed since.

mbrl's sources are untouched. Its functions are wrapped, to count and to time them, and two things
are not as they would be: `evaluate` only stops the clock, and work is counted from the first
training of the models on (see `Meter`). The configuration is the one that mbrl ships for Hopper,
but for the options here, a learned temperature, and a target network that moves at every update.

What mbrl counts as one, and what it does that others may not:

- a model update: one step of Adam for all members, each with a minibatch of its own; the last
  minibatch of an epoch is smaller. `--patience 0 --epochs N` makes their number known beforehand.
- a SAC update: critic, actor and temperature, one step each.
- an imagined transition: one row that was kept; rows after a termination are not.
- models and data are written to a temporary folder after every training ("saving" below).
- in the environment the policy acts by its mean, without noise; termination is computed by
  Hopper's rule, not learned.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import mbrl
import mbrl.algorithms.mbpo as mbpo
import mbrl.util.common
import numpy as np
import torch
from mbrl.env.termination_fns import hopper
from mbrl.models import ModelTrainer, OneDTransitionRewardModel
from mbrl.third_party.pytorch_sac_pranz24.sac import SAC
from mbrl.util import ReplayBuffer
from omegaconf import DictConfig, OmegaConf

SHIPPED = Path(mbrl.__file__).parent / "examples" / "conf"
LIBRARIES = ("mbrl", "torch", "numpy", "gymnasium", "mujoco", "hydra-core", "omegaconf")


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    env = gymnasium.make(options.env)
    env.reset(seed=options.seed)
    env.action_space.seed(options.seed + 2)
    meter = Meter(skip=options.explore + options.model_every - 1)
    meter.attach()
    # mbrl reports on stdout, which is for the result.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        mbpo.train(env, env, hopper, configuration(options), silent=True, work_dir=folder)
    result = meter.result()
    if result["env_steps"] != options.steps:
        raise SystemExit(f"expected {options.steps} measured steps, got {result['env_steps']}")
    versions = {name: version(name) for name in LIBRARIES}
    print(json.dumps(result | {"settings": vars(options), "versions": versions}))


def parsed() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default, meaning in (
        ("steps", 500, "environment steps measured, a multiple of --model-every"),
        ("explore", 5000, "environment steps before, by the untrained policy"),
        ("ensemble", 7, "models"),
        ("elites", 5, "models that are used"),
        ("model-layers", 4, "hidden layers of a model"),
        ("model-width", 200, "units of each"),
        ("model-batch", 256, "transitions per update of each model"),
        ("model-every", 250, "environment steps between trainings of the models"),
        ("patience", 5, "epochs without improvement before a training ends; 0 never ends it"),
        ("epochs", 0, "most epochs of a training; 0 is no limit"),
        ("rollouts-per-step", 400, "states imagined from, for each environment step"),
        ("rollout-length", 1, "steps imagined from each"),
        ("sac-updates", 20, "updates per environment step"),
        ("sac-batch", 256, "transitions per update"),
        ("sac-width", 256, "units of both hidden layers of actor and critics"),
        ("threads", 1, "of PyTorch"),
        ("seed", 0, "of everything random"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--env", default="Hopper-v5", help="or Hopper-v4")
    parser.add_argument("--holdout", type=float, default=0.2, help="share of data held out (0.2)")
    parser.add_argument(
        "--real", type=float, default=0.05, help="share of updates on real transitions (0.05)"
    )
    options = parser.parse_args()
    if not options.env.startswith("Hopper-"):
        parser.error(f"--env is {options.env}, but only Hopper's termination rule is known here")
    if options.steps < 1 or options.steps % options.model_every:
        parser.error(f"--steps must be a multiple of --model-every, {options.model_every}")
    if not options.patience and not options.epochs:
        parser.error("without --patience a training needs --epochs to end")
    if options.explore < options.sac_batch:
        parser.error(f"--explore must be at least --sac-batch, {options.sac_batch}")
    if options.rollouts_per_step * options.model_every % options.elites:
        parser.error("mbrl wants --rollouts-per-step times --model-every to divide by --elites")
    return options


def configuration(options: argparse.Namespace) -> DictConfig:
    """mbrl's own configuration for Hopper with the options' sizes and counts."""
    steps = options.model_every - 1 + options.steps
    length = options.rollout_length
    config = OmegaConf.create(
        {
            "algorithm": OmegaConf.load(SHIPPED / "algorithm" / "mbpo.yaml"),
            "dynamics_model": OmegaConf.load(
                SHIPPED / "dynamics_model" / "gaussian_mlp_ensemble.yaml"
            ),
            "overrides": OmegaConf.load(SHIPPED / "overrides" / "mbpo_hopper.yaml"),
            "seed": options.seed,
            "device": "cpu",
        }
    )
    changes = {
        "algorithm": {
            # Of hydra 1.1 and later: leave what is nested as it is, as 1.0 did.
            "agent": {"_recursive_": False},
            "initial_exploration_steps": options.explore,
            "real_data_ratio": options.real,
            # Else it would be `num_steps`, and exploration would be overwritten.
            "dataset_size": options.explore + steps,
        },
        "dynamics_model": {
            "_recursive_": False,
            "ensemble_size": options.ensemble,
            "num_layers": options.model_layers,
            "hid_size": options.model_width,
        },
        "overrides": {
            "num_steps": steps,
            "epoch_length": steps,  # one epoch of MBPO, as only then the loop ends where it should
            "num_elites": options.elites,
            "patience": options.patience,
            "num_epochs_train_model": options.epochs or None,
            "model_batch_size": options.model_batch,
            "validation_ratio": options.holdout,
            "freq_train_model": options.model_every,
            "effective_model_rollouts_per_step": options.rollouts_per_step,
            "rollout_schedule": [1, 2, length, length],
            "num_sac_updates_per_step": options.sac_updates,
            "sac_batch_size": options.sac_batch,
            "sac_hidden_size": options.sac_width,
            "sac_automatic_entropy_tuning": True,
            "sac_target_entropy": -3,  # minus Hopper's action dimensions
            "sac_target_update_interval": 1,
        },
    }
    return OmegaConf.merge(config, changes)


class Meter:
    """Counts and times mbrl's work, from the step of the first training of the models on.

    Before it, nothing is imagined and so SAC makes no update; from it on, `--steps` environment
    steps hold exactly one training every `--model-every` steps and all updates of SAC.

    Args:
        skip: environment steps that are not measured.
    """

    def __init__(self, skip: int) -> None:
        self.skip, self.running = skip, False
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.updates: list[int] = []
        """Of every training of the models."""
        self.epochs: list[int] = []
        """Of every training."""
        self.imagined = 0
        """Transitions."""
        self.holdout_error = float("nan")
        """Squared error of the last model on held-out data, the mean over models and outputs."""

    def attach(self) -> None:
        """Wrap the functions that mbrl calls."""
        common = mbrl.util.common
        self.wrap(common, "step_env_and_add_to_buffer", "environment")
        self.wrap(common, "train_model_and_save_model_and_data", "model")
        self.wrap(ModelTrainer, "train", "model_training", self.trained)
        self.wrap(ModelTrainer, "evaluate", "model_holdout")
        self.wrap(OneDTransitionRewardModel, "update", "model_updates")
        self.wrap(OneDTransitionRewardModel, "save", "saving")
        self.wrap(ReplayBuffer, "save", "saving")
        self.wrap(mbpo, "rollout_model_and_populate_sac_buffer", "rollout")
        self.wrap(ReplayBuffer, "add_batch", "rollout_storing", self.stored)
        self.wrap(SAC, "update_parameters", "sac")
        mbpo.evaluate = self.stop

    def wrap(
        self,
        owner: Any,
        name: str,
        phase: str,
        note: Callable[[tuple[Any, ...], Any], None] | None = None,
    ) -> None:
        """Time the calls of `owner.name` as `phase`; `note` gets arguments and result of each."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if phase == "environment":
                self.start_if_due()
            if not self.running:
                return function(*args, **kwargs)
            begun = time.process_time()
            result = function(*args, **kwargs)
            self.seconds[phase] += time.process_time() - begun
            self.counts[phase] += 1
            if note:
                note(args, result)
            return result

        setattr(owner, name, timed)

    def start_if_due(self) -> None:
        if self.running:
            return
        if self.skip:
            self.skip -= 1
            return
        self.running, self.begun, self.begun_wall = True, time.process_time(), time.perf_counter()

    def stop(self, *_: Any) -> float:
        """In the place of mbrl's evaluation, which is no part of training."""
        self.total = time.process_time() - self.begun
        self.wall = time.perf_counter() - self.begun_wall
        self.running = False
        return -np.inf  # no record, so that nothing is saved

    def trained(self, _: tuple[Any, ...], result: tuple[list[float], list[float]]) -> None:
        """Note a training: its losses and held-out errors, one each per epoch."""
        self.updates.append(self.counts["model_updates"] - sum(self.updates))
        self.epochs.append(len(result[0]))
        self.holdout_error = result[1][-1]

    def stored(self, args: tuple[Any, ...], _: Any) -> None:
        """Note what was imagined: (buffer, obs (N, D), ...)."""
        self.imagined += len(args[1])

    def result(self) -> dict[str, Any]:
        """Counts, and seconds of CPU over all threads.

        "seconds": the phases, which add up to "cpu_seconds". "of_which": parts of the models'
        training.
        """
        seconds = self.seconds
        phases = {name: seconds[name] for name in ("environment", "model", "rollout", "sac")}
        phases["rest"] = self.total - sum(phases.values())
        parts = {name: seconds[name] for name in ("model_updates", "model_holdout", "saving")}
        steps = self.counts["environment"]
        return {
            "env_steps": steps,
            "cpu_seconds": round(self.total, 3),
            "wall_seconds": round(self.wall, 3),
            "cpu_seconds_per_step": round(self.total / steps, 6),
            "model_trainings": len(self.updates),
            "model_updates": sum(self.updates),
            "model_updates_each": self.updates,
            "model_epochs_each": self.epochs,
            "rollout_batches": self.counts["rollout"],
            "imagined": self.imagined,
            "sac_updates": self.counts["sac"],
            "holdout_error": self.holdout_error,
            "seconds": {name: round(phases[name], 3) for name in phases},
            "of_which": {name: round(parts[name], 3) for name in parts},
        }


if __name__ == "__main__":
    main()
