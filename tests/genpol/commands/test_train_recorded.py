"""`genpol train --base recorded`: EXPO on what a recording says that a policy proposed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recorded_episodes import recorded_line
from toy_data import line_data
from training_runs import TINY, assert_same_run, interrupt_at, resume, rows, words

from genpol.agents.config import TrainConfig
from genpol.agents.deploy import load_edit
from genpol.agents.make import make_agent
from genpol.agents.recorded_base import RecordedBase
from genpol.cli import main
from genpol.commands.from_python import train as train_in_python
from genpol.commands.train.options import Train
from offline.critics.value import ValueFunction
from offline.data.joined import JoinedEpisodes
from offline.data.mixed_transitions import transitions_of
from offline.errors import InputError

DATA = "recorded_episodes:line_recording@0"
OFFLINE: dict[str, Any] = {
    "base": "recorded",
    "steps": 0,
    "offline_updates": 6,
    "num_candidates": 3,
    "log_every": 2,
    "checkpoint_every": 3,
    "env": None,
}


def train(**options) -> int:
    chosen = {**TINY, "data": DATA, **OFFLINE, **options}
    return main(["train", *words(**{k: v for k, v in chosen.items() if v is not None})])


@pytest.mark.parametrize("agent", ["expo", "bestofn"])
def test_it_learns_from_the_recording_alone(agent, tmp_path, monkeypatch, capsys):
    def asked(*_):
        raise AssertionError("the policy was asked")

    monkeypatch.setattr(RecordedBase, "sample", asked)
    assert train(agent=agent, output=tmp_path / "run") == 0
    assert "the policy of --base recorded is not here" in capsys.readouterr().out
    assert ValueFunction.load(tmp_path / "run").env == "toy/line"
    assert not (tmp_path / "run" / "policy").exists()
    if agent == "expo":
        assert load_edit(tmp_path / "run" / "edit")[1]["candidates"] == 3
    last = rows(tmp_path / "run")[-1]
    assert float(last["critic/td_loss"]) > 0 and "cache/hit_rate" not in last


def test_stopped_and_gone_on_with_it_is_the_same_run(tmp_path, monkeypatch):
    assert train(output=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, None)
        assert train(output=tmp_path / "stopped") == 130
    assert resume(tmp_path / "stopped") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_target_is_the_best_of_what_was_proposed():
    data = transitions_of(recorded_line(), 2, discount=0.9, proposals=3)
    config = TrainConfig(
        agent="bestofn", hidden=(8,), value_ensemble=2, subset=2, num_candidates=3, discount=0.9
    )
    agent = make_agent(
        config,
        spec=data.spec,
        obs_shapes=data.obs_shapes,
        obs_stats=data.obs_stats,
        env=None,
        base=RecordedBase(data.spec),
    )
    seen = {}
    agent.critic.update = lambda batch, value, _: seen.update(value=value) or {}
    batch = data.sample(16, torch.Generator().manual_seed(0))
    agent.update_critic(batch, torch.Generator().manual_seed(1))
    every = agent.critic.target(batch.next_obs, batch.proposed).amin(0)  # (B, 3)
    torch.testing.assert_close(seen["value"], every.amax(1))
    with pytest.raises(InputError, match="was asked about another one"):
        agent.acting().sample(batch.obs, 1, torch.Generator())


def test_demonstrations_beside_it(tmp_path):
    """The wrong proposals of a recording do not hide what the demonstrations show."""
    options = {**TINY, **OFFLINE, "output": tmp_path / "run", "env": "toy/line"}

    both = JoinedEpisodes([line_data(6), recorded_line()], (1, 2))
    assert train_in_python(Train(**options), data=both)["train/updates"] == 6


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 5}, "--steps 0 and --offline-updates N"),
        ({"offline_updates": 0}, "--steps 0 and --offline-updates N"),
        ({"agent": "idql"}, "--agent idql needs the base policy itself"),
        ({"candidates": "two-step"}, "--candidates two-step asks the base policy"),
        ({"data": "toy_reach:own@x"}, "toy_reach"),
        ({"action_chunk": 40}, "the recorded proposals have H=2 actions, the critic H=40"),
    ],
)
def test_what_it_cannot_do_is_refused(options, named, tmp_path, capsys):
    assert train(output=tmp_path / "run", **options) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_dataset_without_proposals_is_refused(tmp_path):
    options = {**TINY, **OFFLINE, "output": tmp_path / "run", "env": "toy/line"}
    with pytest.raises(InputError, match="needs a recording of `genpol serve --record`"):
        train_in_python(Train(**options), data=line_data(6))
