"""Every agent with a critic of its own takes a Lipschitz bound, and penalties."""

from __future__ import annotations

import pytest
import torch
from toy_bandit import ENSEMBLE, HIDDEN, SHAPES, SPEC, base_policy, generator, settings, transitions

from genpol.agents.dsrl import DSRL
from genpol.agents.expo import EXPO
from genpol.agents.fql import FQL
from genpol.agents.idql import IDQL
from offline.critics.lipschitz import layer_sigmas
from offline.critics.penalties import penalties
from offline.critics.value import ValueFunction


@pytest.mark.parametrize("kind", [EXPO, IDQL, FQL, DSRL])
def test_bounded_and_penalised(kind, tmp_path):
    config = settings(lipschitz="adversarial", value_diversity=0.5, lr=1e-2)
    value = ValueFunction(
        SPEC, SHAPES, hidden=HIDDEN, ensemble=ENSEMBLE, heads="stacked", lipschitz_bound=0.7
    )
    agent, draw = kind(base_policy(0), value, config, penalty=penalties(config)), generator()
    for _ in range(10):
        batch = transitions(64, draw)
        metrics = agent.update_critic(batch, draw) | agent.update_policy(batch, draw)
    assert {"lipschitz/penalty", "critic/gradient_cosine"} <= set(metrics)
    assert all(torch.isfinite(number) for number in metrics.values())
    agent.save(tmp_path)
    for critic in (value, agent.critic.target, ValueFunction.load(tmp_path)):
        assert (layer_sigmas(critic) <= 0.7 * (1 + 1e-3)).all()
    assert layer_sigmas(value).max() > 0.69
