"""The world model of a `genpol train`: learnt, with rules that are known, or the simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genpol.commands.train import Train
    from genpol.commands.train_inputs import Inputs
    from offline.world_model import WorldModel


def make_world_model(config: Train, inputs: Inputs) -> WorldModel:
    """What `--world-model` names, of what the run observes; it learns and imagines on the CPU, as
    the replay lies there.

    Raises:
        InputError: it cannot predict these observations, or a rule is not known.
    """
    from genpol.agents.imagining import make_dynamics
    from offline.errors import InputError
    from offline.world_model import StateLayout
    from robots.known_rules import known_rules
    from robots.simulator_model import SimulatorModel

    layout = StateLayout.of(inputs.obs_shapes)
    if config.world_model == "simulator":
        return SimulatorModel(
            inputs.env,
            layout,
            inputs.spec,
            reward=config.reward,
            reward_scale=config.reward_scale,
            discount=config.discount,
        )
    if "reward" in config.known and config.reward != "dataset":
        raise InputError(
            f"--known reward is the environment's own reward, --reward {config.reward} is not: "
            "pass --reward dataset, or let the model learn it"
        )
    rules = known_rules(
        inputs.env, config.known, layout, inputs.spec, reward_scale=config.reward_scale
    )
    return make_dynamics(
        config,
        layout,
        inputs.spec.dim,
        reward=rules.reward,
        terminated=rules.terminated,
    )
