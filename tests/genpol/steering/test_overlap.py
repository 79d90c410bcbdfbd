"""Plans that overlap: what is running comes first, averages are made before they are scored; with
numbers computed by hand."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from fake_steering import SPEC, Quadratic, Uniform, seeded, states

from genpol.steering.overlap import Overlap, Overlapping, overlapping
from genpol.steering.paired_episodes import run_episodes
from genpol.steering.select import argmax
from genpol.steering.session import Arms
from genpol.steering.steered import Edits, Steered
from offline.errors import InputError


class Numbered:
    """The k-th call's proposal is k/10, k/10 + .01, ...: which call an action is of can be seen."""

    def __init__(self, chunk=6):
        self.spec, self.calls, self.done, self.kept = SPEC.with_chunk(chunk), 0, [], None

    def reset(self):
        self.calls = 0

    def sample(self, obs, n, generator):
        self.calls += 1
        row = self.calls / 10 + torch.arange(self.spec.chunk) / 100
        return row.expand(len(obs["state"]), n, -1)[..., None].clone()

    def commit(self, act):
        self.done.append(act.flatten().tolist())

    def keep(self, rows):
        self.kept = rows.tolist()


def plan_of(policy, rows=1):
    return policy.sample(states(rows), 1, None)[:, 0]


def near(act, expected):
    assert torch.allclose(act.flatten(), torch.tensor(expected).flatten(), atol=1e-6), act


def test_a_proposal_begins_with_what_is_running():
    policy = Overlapping(Numbered(), Overlap(plan=6, execute=4, lookahead=2))
    policy.reset()
    first = plan_of(policy)
    near(first, [0.1, 0.11, 0.12, 0.13, 0.14, 0.15])  # nothing runs yet
    policy.commit(first)
    second = plan_of(policy)
    near(second, [0.14, 0.15, 0.22, 0.23, 0.24, 0.25])
    policy.commit(second)
    near(plan_of(policy), [0.24, 0.25, 0.32, 0.33, 0.34, 0.35])
    # The base policy is told what was executed between its observations, without gap or overlap.
    told = [x for part in policy.base.done for x in part]
    near(torch.tensor(told), [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.22, 0.23])
    policy.reset()
    near(plan_of(policy), [0.1, 0.11, 0.12, 0.13, 0.14, 0.15])


def test_a_robot_that_asks_earlier_stops_or_is_taken_over():
    policy = Overlapping(Numbered(), Overlap(plan=6, execute=4, lookahead=2))
    plan = plan_of(policy)
    policy.go_on(plan, plan[:, :1])  # asks after one action: the next two are running
    near(plan_of(policy)[:, :3], [0.11, 0.12, 0.22])
    policy.go_on(plan, plan[:, :1], running=1)
    near(plan_of(policy)[:, :2], [0.11, 0.31])
    policy.go_on(plan, plan[:, :5])  # asks late: one is left
    near(plan_of(policy)[:, :2], [0.15, 0.41])
    policy.go_on(plan, plan[:, :3], running=0)  # stands still
    near(plan_of(policy)[:, :2], [0.5, 0.51])
    policy.go_on(plan, plan)  # waited until nothing was left
    near(plan_of(policy)[:, :2], [0.6, 0.61])
    human = torch.full((1, 3, 1), -0.5)
    policy.go_on(None, human)
    near(plan_of(policy)[:, :2], [0.7, 0.71])
    assert policy.base.done[-1] == [-0.5] * 3
    policy.go_on(plan, plan[:, :0])  # nothing was done, and it was not told either
    near(plan_of(policy)[:, :3], [0.1, 0.11, 0.82])
    assert policy.base.done[-1] == [-0.5] * 3


def test_a_robot_runs_nothing_that_it_was_not_answered():
    """Six actions are scored and four answered, so that none is left after four."""
    policy = Overlapping(Numbered(), Overlap(plan=6, execute=3, lookahead=1))
    plan = plan_of(policy)
    policy.go_on(plan, plan[:, :4])
    near(plan_of(policy)[:, :2], [0.2, 0.21])


def test_rows_that_end_take_their_plans_with_them():
    policy = Overlapping(Numbered(), Overlap(plan=6, execute=4, lookahead=2))
    plans = plan_of(policy, 3) + torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1)
    policy.commit(plans)
    policy.keep(torch.tensor([0, 2]))
    assert policy.base.kept == [0, 2]
    near(plan_of(policy, 2)[:, 0], [0.14, 2.14])
    with pytest.raises(InputError, match="3 episodes go on where 2 plans run"):
        plan_of(policy, 3)


@pytest.mark.parametrize("m", [0.0, 0.01, 1.0, -0.5])
def test_the_ensemble_is_acts_average_over_all_plans_of_a_time(m):
    policy = Overlapping(Numbered(), Overlap(plan=6, execute=2, ensemble=m))
    for _ in range(4):
        plan = plan_of(policy)
        policy.commit(plan)
    # The time of the 4th plan's first action is the 3rd plan's third and the 2nd plan's fifth.
    raw = [[0.24, 0.25], [0.32, 0.33], [0.4, 0.41]]
    weights = [math.exp(-m * i) for i in range(3)]  # the oldest first
    mean = (np.array(weights)[:, None] * raw).sum(0) / sum(weights)
    near(plan[:, :2], mean.tolist())
    weights = weights[:2]
    mean = (weights[0] * 0.34 + weights[1] * 0.42) / sum(weights)
    near(plan[:, 2], [mean])
    near(plan[:, 4:], [0.44, 0.45])


def test_extreme_weights_are_the_oldest_and_the_newest_plan():
    for m, expected in ((1e3, [0.12, 0.13, 0.14, 0.15]), (-1e3, [0.2, 0.21, 0.22, 0.23])):
        policy = Overlapping(Numbered(), Overlap(plan=6, execute=2, ensemble=m))
        policy.commit(plan_of(policy))
        near(plan_of(policy)[:, :4], expected)


def test_what_is_running_is_not_averaged():
    policy = Overlapping(Numbered(), Overlap(plan=6, execute=2, lookahead=1, ensemble=0.0))
    policy.commit(plan_of(policy))
    plan = plan_of(policy)
    near(plan, [0.12, 0.17, 0.18, 0.19, 0.24, 0.25])
    policy.commit(plan)
    # .18 runs on as it is; the next time has .15, .23 and .31 of three plans.
    near(plan_of(policy), [0.18, 0.23, 0.28, 0.29, 0.34, 0.35])


class Moves:
    """An edit that adds .2 to every action."""

    def __call__(self, features, act, generator):
        return Edits(act + 0.2, torch.zeros(act.shape[:2]))


@pytest.mark.parametrize("edit", [None, Moves()])
def test_what_is_scored_is_what_will_have_been_executed(edit):
    critic = Quadratic(SPEC.with_chunk(4))
    steered = Steered(Uniform(chunk=6), critic, 8, argmax(), edit=edit)
    policy = overlapping(steered, Overlap(plan=4, execute=3, lookahead=1))
    assert isinstance(policy.base, Overlapping) and not isinstance(steered.base, Overlapping)
    generator, previous = seeded(), None
    for _ in range(4):
        decision = policy.decide(states(2), generator)
        if previous is not None:
            for k in range(decision.num_scored):
                assert torch.equal(decision.candidates[:, k, 0], previous[:, 3])
            assert decision.candidates[:, :, 1].std() > 0
        raw = critic.seen[-1]
        assert torch.allclose(raw, decision.candidates, atol=1e-6)
        picked = decision.candidates[torch.arange(2), decision.chosen]
        assert torch.equal(picked, decision.action)
        assert torch.equal(decision.chosen, decision.scores.argmax(-1))
        previous = decision.action
        policy.commit(previous)


def test_a_copy_of_a_steered_policy_has_plans_of_its_own():
    """As a server makes one for each client; the edit has to follow the copy's plan."""
    steered = Steered(Numbered(), Quadratic(SPEC.with_chunk(6)), 1, argmax(), edit=Moves())
    one = overlapping(steered, Overlap(plan=6, execute=4, lookahead=2))
    other = copy.deepcopy(one)
    one.commit(one.decide(states(), None).action)
    assert one.edit.overlapping is one.base and other.edit.overlapping is other.base
    assert one.base.running == 2 and other.base.running == 0
    act = one.decide(states(), None).candidates
    assert torch.equal(act[:, 0, :2], act[:, 1, :2]) and not torch.equal(act[:, 0], act[:, 1])


class Track:
    """Remembers its actions; an episode has nine steps."""

    has_success = True

    def reset(self, seed):
        self.actions = []
        return self._obs(), {}

    def _obs(self):
        return {"state": np.zeros(2, np.float32)}

    def step(self, action):
        self.actions.append(float(action[0]))
        return self._obs(), 0.0, False, len(self.actions) == 9, {"success": False}


@pytest.mark.filterwarnings("ignore:all 2 proposals are identical")
def test_every_arm_of_an_evaluation_lives_with_the_same_overlap():
    arms = Arms(
        Numbered(), Quadratic(SPEC.with_chunk(6)), argmax(), num_candidates=2,
        filtered=Numbered(), overlap=Overlap(plan=6, execute=4, lookahead=2),
    )  # fmt: skip
    for name in ("base", "mode", "filtered", "steered", "random"):
        envs: list[Track] = []
        run_episodes(
            arms.make(name), Track, [0], generator_seed=0, chunk=6, execute=4, envs=envs,
        )  # fmt: skip
        expected = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.22, 0.23, 0.24]
        np.testing.assert_allclose(envs[0].actions, expected, atol=1e-6, err_msg=name)


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="at least 1 action between two decisions"):
        Overlap(plan=8, execute=0, lookahead=2)
    with pytest.raises(InputError, match="7 actions executed and 2 of lookahead are 9, but chunks"):
        Overlap(plan=8, execute=7, lookahead=2)
    with pytest.raises(InputError, match="proposes 6 actions, 8 are scored"):
        Overlapping(Numbered(6), Overlap(plan=8, execute=7))
