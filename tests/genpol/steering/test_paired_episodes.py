"""Paired episodes: the same layouts for every arm, chunks executed as proposed, rows that end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genpol.steering.paired_episodes import Mode, medoid, run_episodes
from offline.errors import InputError
from offline.spec import ActionSpec

SPEC = ActionSpec.from_bounds([-2.0], [2.0], chunk=2)


class Line:
    """Walk from 0 to a goal that the seed hides; an action is the step, in [-2, 2]."""

    def __init__(self) -> None:
        self.resets: list[int] = []
        self.executed: list[float] = []

    def reset(self, seed: int):
        self.resets.append(seed)
        self.goal, self.x, self.steps = float(seed), 0.0, 0
        return self._obs(), {}

    def _obs(self):
        return {"state": np.array([self.x, self.goal], np.float32)}

    def step(self, action):
        assert action.shape == (1,)
        self.executed.append(float(action[0]))
        self.x += float(action[0])
        self.steps += 1
        success = abs(self.x - self.goal) < 0.5
        return self._obs(), -1.0, success, self.steps >= 12, {"success": success}

    def render(self):
        return np.zeros((2, 2, 3), np.uint8)


class Walker:
    """Steps of +1 in the environment's units; counts what it is told."""

    def __init__(self, spec: ActionSpec = SPEC) -> None:
        self.spec, self.rows, self.commits = spec, [], []

    def reset(self):
        self.rows, self.commits = [], []

    def sample(self, obs, n, generator):
        self.rows.append(len(obs["state"]))
        raw = torch.ones(len(obs["state"]), n, self.spec.chunk, 1)
        return self.spec.normalize(raw)

    def commit(self, act):
        self.commits.append(tuple(act.shape))

    def keep(self, rows):
        self.kept = rows.tolist()


def test_lengths_returns_and_success_by_hand():
    envs: list[Line] = []
    done: list[int] = []
    rollouts = run_episodes(
        Walker(), Line, [3, 20, 5], generator_seed=0, envs=envs, progress=done.append
    )
    assert rollouts.success.tolist() == [True, False, True]
    assert rollouts.lengths.tolist() == [3, 12, 5]  # 3 ends inside its second chunk
    assert rollouts.returns.tolist() == [-3.0, -12.0, -5.0]
    assert [env.resets for env in envs] == [[3], [20], [5]]
    assert sum(done) == 3
    assert np.isnan(rollouts.scores).all() and np.isnan(rollouts.spread)


def test_actions_reach_the_environment_in_its_units():
    envs: list[Line] = []
    run_episodes(Walker(), Line, [4], generator_seed=0, envs=envs)
    assert envs[0].executed == [1.0] * 4  # normalised it was 0.5


def test_ended_rows_leave_the_batch():
    walker = Walker()
    run_episodes(walker, Line, [3, 20, 5], generator_seed=0)
    assert walker.rows == [3, 3, 2, 1, 1, 1]
    assert walker.commits[0] == (3, 2, 1)


def test_batches_give_what_one_batch_gives_for_a_deterministic_policy():
    whole = run_episodes(Walker(), Line, [3, 20, 5], generator_seed=0, parallel=3)
    parts = run_episodes(Walker(), Line, [3, 20, 5], generator_seed=0, parallel=1)
    assert whole.lengths.tolist() == parts.lengths.tolist()


def test_a_shorter_chunk_decides_more_often():
    walker = Walker()
    run_episodes(walker, Line, [4], generator_seed=0, chunk=1)
    assert len(walker.commits) == 4 and walker.commits[0] == (1, 1, 1)


def test_a_film_has_a_frame_for_every_step_and_one_more():
    rollouts = run_episodes(Walker(), Line, [3, 5], generator_seed=0, record=[1])
    assert list(rollouts.recordings) == [1]
    film = rollouts.recordings[1]
    assert len(film.frames) == len(film.decisions) == 6


def test_actions_of_another_shape_are_refused():
    walker = Walker()
    walker.sample = lambda obs, n, generator: torch.zeros(1, n, 2, 3)
    with pytest.raises(InputError, match=r"\(B=1, H, A=1\).*\(1, 2, 3\)"):
        run_episodes(walker, Line, [3], generator_seed=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinite_actions_are_refused(value):
    walker = Walker()
    walker.sample = lambda obs, n, generator: torch.full((1, n, 2, 1), value)
    with pytest.raises(InputError, match="NaN"):
        run_episodes(walker, Line, [3], generator_seed=0)


def test_the_medoid_of_two_clusters_is_in_the_larger():
    candidates = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1]).reshape(1, 5, 1, 1)
    assert medoid(candidates).item() == pytest.approx(0.2)  # nearest to all, the far two included


def test_mode_asks_the_policy_or_takes_the_medoid():
    walker = Walker()
    arm = Mode(walker)
    assert arm.kind == "medoid"
    assert arm.sample({"state": torch.zeros(2, 2)}, 3, None).shape == (2, 3, 2, 1)

    class WithMode(Walker):
        def mode(self, obs, generator):
            return torch.full((len(obs["state"]), 2, 1), 0.25)

    arm = Mode(WithMode())
    assert arm.kind == "mode"
    assert (arm.sample({"state": torch.zeros(2, 2)}, 1, None) == 0.25).all()
