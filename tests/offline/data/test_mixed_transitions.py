"""Several datasets as one: shares of a batch, statistics, and what does not fit."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from recorded_episodes import recorded_line
from toy_data import ListEpisodes, episode, line_data, spec

from offline.critics.train_value import ValueTraining
from offline.critics.value_config import ValueConfig
from offline.data.joined import JoinedEpisodes, by_source, join
from offline.data.mixed_transitions import MixedTransitions, transitions_of
from offline.data.transitions import Transitions
from offline.errors import InputError


def pair(weights=(), **second):
    """Three episodes of 10 steps with states from 0, and one of 6 with states from 100."""
    few = episode(6, success=True, **second)
    few.obs["state"] += 100
    many = ListEpisodes([episode(10, success=False, seed=i) for i in range(3)], spec())
    return JoinedEpisodes([many, ListEpisodes([few], spec())], weights, ["many", "few"])


def test_a_batch_has_the_shares_whatever_the_sizes():
    data = transitions_of(pair((1, 3)), 2)
    assert isinstance(data, MixedTransitions) and len(data) == 3 * 9 + 6
    batch = data.sample(40, torch.Generator().manual_seed(0))
    assert int((batch.obs["state"] >= 100).sum()) == 30
    assert transitions_of(pair(), 2).sample(40).success.sum() == 20  # equal shares
    # Keys tell the transitions of both apart.
    first, second = batch.key[:10], batch.key[10:]
    assert first.max() < 27 <= second.min() and second.max() < 33


def test_statistics_are_those_of_the_mixture():
    data = transitions_of(pair((1, 3)), 2)
    many, few = np.tile(np.arange(11.0), 3), 100 + np.arange(7.0)
    mean = many.mean() / 4 + few.mean() * 3 / 4
    square = (many**2).mean() / 4 + (few**2).mean() * 3 / 4
    assert data.obs_stats["state"][0] == pytest.approx(mean, rel=1e-5)
    assert data.obs_stats["state"][1] == pytest.approx(np.sqrt(square - mean**2), rel=1e-4)
    assert (data.successes, data.failures) == (1, 3)
    assert data.indices.tolist() == [0, 1, 2, 3]
    assert data.fingerprint != transitions_of(pair((1, 1)), 2).fingerprint


def test_one_dataset_stays_what_it_is():
    alone = line_data(4)
    assert join([alone]) is alone
    assert isinstance(transitions_of(alone, 2), Transitions)


def test_streamed_shares_go_on_where_they_stood():
    def made():
        return transitions_of(pair((1, 1)), 2, memory_limit=64)

    data, draw = made(), torch.Generator().manual_seed(1)
    assert data.streamed
    data.sample(8, draw)
    other, state = made(), draw.get_state()
    other.load_state_dict(data.state_dict())
    again = torch.Generator()
    again.set_state(state)
    torch.testing.assert_close(data.sample(8, draw).obs, other.sample(8, again).obs)


def test_each_dataset_holds_out_its_own():
    joined = JoinedEpisodes([line_data(20), line_data(10, seed=1)])
    config = ValueConfig(steps=1, batch_size=4, hidden=(8,), action_chunk=2)
    training = ValueTraining(joined, config)
    assert len(training.valid.indices) == 3
    assert sorted([*training.train.indices, *training.valid.indices]) == list(range(30))
    assert sum(i >= 20 for i in training.valid.indices) == 1
    assert np.isfinite(float(training.update(0)["critic/td_loss"]))
    parts = by_source(joined, lambda part: (np.arange(len(part)), np.array([0])))
    assert parts[1].tolist() == [0, 20]


def test_stated_bounds_win_over_guessed_ones_and_each_other_refuse():
    wide = ListEpisodes([episode(4, success=True)], spec())
    guessed = ListEpisodes(
        [episode(4, success=True)], dataclasses.replace(spec(), low=(-0.1,), high=(0.1,))
    )
    with pytest.raises(InputError, match=r"in \[-2, 2\] in wide, in \[-0.1, 0.1\] in guessed"):
        JoinedEpisodes([wide, guessed], (), ["wide", "guessed"])
    guessed.meta["spec_from"] = "data"
    assert JoinedEpisodes([guessed, wide]).spec.low == (-2.0,)


def test_what_does_not_fit_is_refused_by_name(caplog):
    one = ListEpisodes([episode(4, success=True)], spec())
    two = ListEpisodes([episode(4, success=True, dim=2)], spec(2))
    with pytest.raises(InputError, match="A=1 in one and A=2 in two"):
        JoinedEpisodes([one, two], (), ["one", "two"])
    other = ListEpisodes([episode(4, success=True)], spec(), env="toy/other")
    with pytest.raises(InputError, match=r"toy/line \(one\), toy/other \(two\)"):
        JoinedEpisodes([one, other], (), ["one", "two"])
    for weights in ((1,), (1, 0), (1, float("nan"))):
        with pytest.raises(InputError, match="weights"):
            JoinedEpisodes([one, one], weights)
    blind = ListEpisodes([episode(4, success=True)], spec())
    blind.obs_shapes = {"joints": (3,)}
    with pytest.raises(InputError, match=r"no observation is in every --data \(one: state; b: j"):
        JoinedEpisodes([one, blind], (), ["one", "b"])
    blind.obs_shapes = {"joints": (3,), "state": (1,)}
    with caplog.at_level(logging.WARNING):
        joined = JoinedEpisodes([one, blind], (), ["one", "b"])
    assert joined.obs_shapes == {"state": (1,)} and '"joints" is left out' in caplog.text
    with pytest.raises(IndexError):
        joined.locate(2)
    assert joined[-1] is blind[0]


def test_names_of_one_thing_are_matched():
    one = ListEpisodes([episode(4, success=True)], spec())
    named = recorded_line(4)
    for i, part in enumerate(named):
        named[i] = dataclasses.replace(part, obs={"observation/state": part.obs["state"]})
    named.obs_shapes = {"observation/state": (1,)}
    joined = JoinedEpisodes([one, named])
    assert joined.obs_shapes == {"state": (1,)} and set(joined[2].obs) == {"state"}
    batch = transitions_of(joined, 2, proposals=2).sample(8, torch.Generator().manual_seed(0))
    assert (batch.proposed[4:] != batch.proposed[4:, :1]).any()  # its decisions are still found
    assert not hasattr(JoinedEpisodes([named, one]).sources[1].episodes, "decisions")
