"""Evaluation results, frozen base policies, and parts that do not fit together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from genpol.agents.compatibility import require_observations, require_same_actions
from genpol.agents.frozen_base import FrozenBase
from genpol.reports.videos import Recording
from genpol.runs.rng import undisturbed
from genpol.steering.paired_episodes import Rollouts
from genpol.training.evaluation import summarised, write_films
from offline.errors import SpecError
from offline.spec import ActionSpec

OURS = ActionSpec.from_bounds([-1.0, -1.0], [1.0, 1.0], chunk=2)
# as our [-1, 1], but 1 is 0.5 in the environment's units
THEIRS = ActionSpec.from_bounds([-0.5, -0.5], [0.5, 0.5], chunk=3)


class Counting:
    """Proposes the number of its decisions so far, in tenths of its own units."""

    spec = THEIRS

    def __init__(self):
        self.decisions, self.told = 0, []

    def reset(self):
        self.decisions = 0

    def sample(self, obs, n, generator):
        return torch.full((len(obs["state"]), n, 3, 2), 0.1 * self.decisions)

    def commit(self, act):
        self.decisions += 1
        self.told.append(act)

    def keep(self, rows):
        self.told.append(rows)


def decide(policy, rows: int = 1) -> float:
    """One decision; what was proposed, in the policy's units."""
    act = policy.sample({"state": torch.zeros(rows, 3)}, 4, None)
    assert act.shape == (rows, 4, policy.spec.chunk, 2)
    policy.commit(act[:, 0])
    return round(float(act[0, 0, 0, 0]), 6)


def test_a_frozen_base_speaks_our_units():
    policy, spare = Counting(), Counting()
    base = FrozenBase(policy, spare, OURS)
    assert base.spec is OURS
    assert [decide(base) for _ in range(3)] == [0.0, 0.05, 0.1]  # half of 0, .1, .2
    assert torch.allclose(policy.told[2], torch.full((1, 2, 2), 0.2))  # back in its own


def test_side_trips_leave_its_episode_alone():
    base = FrozenBase(Counting(), Counting(), OURS)
    decide(base), decide(base)
    targets = base.for_targets
    with base.aside():
        base.reset()
        assert [decide(base, 5), decide(base, 5)] == [0.0, 0.05]
    assert [decide(targets, 7), decide(targets, 7)] == [0.0, 0.0]  # each a fresh beginning
    assert decide(base) == 0.1


def test_an_evaluation_puts_back_the_streams_that_a_black_box_lists():
    class Random(Counting):
        def __init__(self):
            super().__init__()
            self.stream = torch.Generator().manual_seed(0)

        def generators(self):
            return [self.stream]

        def sample(self, obs, n, generator):
            return torch.rand(len(obs["state"]), n, 3, 2, generator=self.stream)

    assert FrozenBase(Counting(), Counting(), OURS).generators() == []
    base = FrozenBase(Random(), Random(), OURS)
    targets, expected = base.for_targets, decide(FrozenBase(Random(), Random(), OURS))
    with undisturbed(generators=base.generators()), base.aside():
        assert [decide(base), decide(base)][1] != expected
    assert decide(targets) == decide(base) == expected


def test_what_it_proposes_is_clipped_to_the_bounds():
    class Far(Counting):
        spec = OURS.with_chunk(3)

        def sample(self, obs, n, generator):
            return torch.full((1, n, 3, 2), 1.5)

    assert decide(FrozenBase(Far(), Far(), OURS)) == 1.0


def test_a_base_that_cannot_act_here_is_refused():
    with pytest.raises(SpecError, match="A=2, the environment takes A=3"):
        FrozenBase(Counting(), Counting(), ActionSpec.from_bounds([-1.0] * 3, [1.0] * 3))
    with pytest.raises(SpecError, match="H=3 actions, fewer than --action-chunk 4"):
        FrozenBase(Counting(), Counting(), OURS.with_chunk(4))


def test_actions_normalised_otherwise_are_refused():
    require_same_actions(OURS, OURS, "--base")
    with pytest.raises(SpecError, match=r"--base maps -0.5 to 0.5 of dimension 0"):
        require_same_actions(THEIRS.with_chunk(2), OURS, "--base")
    with pytest.raises(SpecError, match="pass --action-chunk 3, not 2"):
        require_same_actions(THEIRS, OURS, "--value")
    with pytest.raises(SpecError, match="A=2, the environment takes A=1"):
        require_same_actions(OURS, ActionSpec.from_bounds([-1.0], [1.0], chunk=2), "--base")


def test_observations_that_are_missing_or_of_another_shape_are_refused():
    require_observations({"state": (3,), "extra": (1,)}, {"state": (3,)}, "--base")
    with pytest.raises(SpecError, match=r'--base was trained with the observation "goal" \(2,\)'):
        require_observations({"state": (3,)}, {"goal": (2,)}, "--base")
    with pytest.raises(SpecError, match=r'"state" is \(3,\) here, --value was trained with \(4,\)'):
        require_observations({"state": (3,)}, {"state": (4,)}, "--value")


def rollouts(success: list[bool]) -> Rollouts:
    count = len(success)
    return Rollouts(
        seeds=np.arange(count),
        success=np.array(success),
        returns=np.arange(count, dtype=float),
        lengths=np.full(count, 7),
        scores=np.full(count, np.nan),
        fell_back=0.0,
        spread=math.nan,
        recordings={},
    )


def test_films_say_how_their_episode_ended(tmp_path):
    found = rollouts([True, False])
    for i in range(2):
        frames = [np.full((32, 32, 3), 40 * t, np.uint8) for t in range(3)]
        found.recordings[i] = Recording(frames, [{}, {}, {}])
    (first, won), (second, lost) = write_films(found, tmp_path / "videos", 200)
    assert first.stem == "step-000200-episode-0" and second.stem == "step-000200-episode-1"
    assert first.stat().st_size > 0 and second.stat().st_size > 0
    assert (won, lost) == ("step 200: success", "step 200: no success in 7 steps")
    told = [text for _, text in write_films(found, tmp_path / "v", 200, has_success=False)]
    assert told == ["step 200: return 0 in 7 steps", "step 200: return 1 in 7 steps"]


def test_an_evaluations_numbers():
    found = summarised(rollouts([True, True, True, False]))
    assert (found["eval/success"], found["eval/return"], found["eval/length"]) == (0.75, 1.5, 7.0)
    # Wilson's interval of 3 of 4, worked out by hand: z = 1.96
    assert found["eval/success_low"] == pytest.approx(0.3006, abs=1e-4)
    assert found["eval/success_high"] == pytest.approx(0.9544, abs=1e-4)
    without = summarised(rollouts([False] * 3), has_success=False)
    assert math.isnan(without["eval/success"]) and without["eval/return"] == 1.0
