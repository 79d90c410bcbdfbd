"""What an agent imagines: a world model, its training on real steps, and branches of the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from genpol.agents.config import TrainConfig
from offline.critics.td import TDCritic
from offline.data.mixed_transitions import Data
from offline.data.mixture import Mixture, Share
from offline.data.replay import Replay
from offline.learning.agent import Agent, HasStateless
from offline.models.dynamics import Dynamics, Rule
from offline.models.held_out import split_rows
from offline.models.imagination import Imagination, Stateful
from offline.models.model_training import ModelTraining
from offline.models.steps import RealSteps
from offline.models.vagram import VaGraM, ValueGradient, value_error
from offline.models.world_model import StateLayout, Steps, WorldModel
from offline.types import Policy

JUDGED = 1000  # held-out steps on which the error of the value is measured after each training


def make_dynamics(
    config: TrainConfig,
    layout: StateLayout,
    action: int,
    *,
    reward: Rule | None = None,
    terminated: Rule | None = None,
) -> Dynamics:
    """The models that `config.world_model` names; the same seed gives the same weights.

    Args:
        config: their sizes.
        layout: of the flat states.
        action: A.
        reward, terminated: known rules, instead of learnt ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 30)
        return Dynamics(
            layout,
            action,
            config.model_hidden,
            config.ensemble,
            config.elites,
            probabilistic=config.world_model == "mle",
            dtype=config.model_dtype,
            reward=reward,
            terminated=terminated,
        )


def make_imagination(
    config: TrainConfig,
    agent: Agent,
    model: WorldModel,
    replay: Replay,
    data: Data | None = None,
    device: str = "cpu",
) -> Imagination:
    """A source of imagined transitions that fits `model` as it goes, where it can be fitted.

    Args:
        config: how the model learns, and how often, how many and how long branches are.
        agent: whose policy acts in the branches, and whose values VaGraM goes by.
        model: `Dynamics`, or the simulator.
        replay: its steps are learnt from, its states branched from.
        data: the same of a dataset.
        device: where a model that learns is put; the simulator stays on the CPU.
    """
    shares = [Share("online", replay, 1.0)]
    if data is not None:
        share = 0.5  # where nothing real is in the batches
        if config.imagined_fraction < 1:
            share = config.offline_fraction / (1 - config.imagined_fraction)
        shares = [Share("offline", data, min(share, 1.0)), Share("online", replay, 0.0)]
        shares[1] = Share("online", replay, 1 - shares[0].fraction)
    policy = stateless_policy(agent) or agent.acting()
    fitter = None
    parts: dict[str, Stateful] = {}
    if isinstance(model, Dynamics):
        model.to(device)
        fitter = Fitter(config, model, RealSteps(model.layout, replay, data), agent)
        parts = {"fitter": fitter}
    else:
        device = "cpu"
    return Imagination(
        model,
        policy,
        Mixture(shares),
        config,
        config.discount,
        fit=fitter,
        seed=config.seed + 31,
        parts=parts,
        device=device,
    )


def stateless_policy(agent: Agent, num_candidates: int | None = None) -> Policy | None:
    """What an agent does in states of no episode where its acting policy remembers its episode.

    None for agents whose acting policy has no such memory.
    """
    return agent.stateless(num_candidates) if isinstance(agent, HasStateless) else None


class Fitter:
    """Trains a model on all real steps there are; called with the step by `Imagination`.

    Args:
        config: says by what loss.
        model: to train.
        real: all steps there are.
        agent: whose values say what matters.
    """

    def __init__(self, config: TrainConfig, model: Dynamics, real: RealSteps, agent: Agent) -> None:
        self.config, self.model, self.real = config, model, real
        self.training = ModelTraining(model, config)
        self.generator = Generator().manual_seed(config.seed + 32)
        critic = getattr(agent, "critic", None)
        self.values: ValueGradient | None = None
        self.vagram: VaGraM | None = None
        if isinstance(critic, TDCritic):
            # The mode where there is one; of a chain one sample, as all states are asked about.
            policy = stateless_policy(agent, 1) or agent.evaluating()
            self.values = ValueGradient(critic.target, policy, model.layout)
            if config.world_model == "vagram":
                self.vagram = VaGraM(self.values, config)

    def __call__(self, step: int) -> dict[str, float]:
        """One training; what it came to."""
        steps, keys = self.real.read()
        weights: Callable[[Steps], Tensor] | None = None
        if self.vagram is not None:
            vagram, model = self.vagram, self.model

            def by_value(table: Steps) -> Tensor:
                # the trainer divides errors of state and reward by what each changes by
                std = model.delta_std / model.reward_std
                return vagram.weights(table, std, step, self.generator)

            weights = by_value

        metrics = self.training.fit(steps, self.generator, weights, keys)
        if self.vagram is not None:
            metrics |= self.vagram.metrics
        if self.values is not None:
            _, held = split_rows(keys, self.config.model_holdout)
            judged = steps.take(held[:JUDGED]).to(self.model.state_mean.device)
            metrics |= value_error(self.model, self.values, judged, self.generator)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Model, optimiser, random numbers, and when the warm-up began."""
        return {
            "training": self.training.state_dict(),
            "generator": self.generator.get_state(),
            "vagram": None if self.vagram is None else self.vagram.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        self.training.load_state_dict(state["training"])
        self.generator.set_state(state["generator"])
        if self.vagram is not None:
            self.vagram.load_state_dict(state["vagram"])
