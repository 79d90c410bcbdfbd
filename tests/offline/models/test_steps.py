import copy

import numpy as np
import pytest
import torch
from replay_steps import make, play
from toy_data import ListEpisodes, episode, spec

from offline.data.returns import online_reward
from offline.data.transitions import Transitions
from offline.errors import InputError
from offline.models.steps import RealSteps, dataset_steps, replay_steps
from offline.models.world_model import StateLayout

LAYOUT = StateLayout({"state": 1})


def read(replay):
    """(state, next state, reward, terminated, key) of each step, by key."""
    steps, keys = replay_steps(replay, LAYOUT)
    torch.testing.assert_close(steps.act[:, 0] * 1000, steps.state[:, 0])
    columns = (steps.state[:, 0], steps.next_state[:, 0], steps.reward, steps.terminated, keys)
    return sorted(zip(*(c.tolist() for c in columns), strict=True), key=lambda row: row[-1])


# -- of a replay


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_every_step_of_a_replay_by_hand(chunk):
    """Whatever the chunk: also the last steps before a time limit, and of a short episode."""
    replay = make(40, chunk=chunk)
    play(replay, 3, ends="terminated", rewards=[5, 6, 7])
    play(replay, 3, first=100, ends="truncated")
    play(replay, 1, first=200, ends="terminated")
    play(replay, 2, first=300)
    assert read(replay) == [
        (0, 1, 5, 0, 0),
        (1, 2, 6, 0, 1),
        (2, 3, 7, 1, 2),
        (100, 101, 100, 0, 4),
        (101, 102, 101, 0, 5),
        (102, 103, 102, 0, 6),
        (200, 201, 200, 1, 8),
        (300, 301, 300, 0, 10),
        (301, 302, 301, 0, 11),
    ]


def test_an_episode_given_up_and_one_that_terminates_at_the_limit():
    replay = make(40)
    play(replay, 2)
    replay.cut(0)
    replay.add(0, {"state": [50.0]}, [0.05], 1.0, {"state": [51.0]}, True, True)
    assert [row[:4] for row in read(replay)] == [(0, 1, 0, 0), (1, 2, 1, 0), (50, 51, 1, 1)]


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_ring_holds_the_newest_steps(lanes):
    """Against a list of all that ever happened, wrapping many times."""
    rng = np.random.default_rng(lanes)
    size = 11
    replay = make(lanes * size, lanes=lanes)
    slots = [[] for _ in range(lanes)]  # what each slot held, ever; None: nothing was done there
    state = [1000.0 * lane for lane in range(lanes)]
    running = [False] * lanes
    for _ in range(300):
        lane = int(rng.integers(lanes))
        if not running[lane]:
            slots[lane].append(None)
        ends = str(rng.choice(["", "", "", "", "terminated", "truncated"]))
        play(replay, 1, lane=lane, first=state[lane], ends=ends)
        position = len(slots[lane]) - 1
        key = position % size * lanes + lane + position // size * lanes * size
        slots[lane][-1] = (state[lane], state[lane] + 1, state[lane], ends == "terminated", key)
        slots[lane].append(None)
        state[lane] += 2 if ends else 1
        running[lane] = not ends
        expected = [row for history in slots for row in history[-size:] if row]
        assert read(replay) == sorted(expected, key=lambda row: row[-1])


def test_a_resumed_replay_has_the_same_steps():
    replay, other = make(20), make(20)
    play(replay, 13, ends="terminated")
    play(other, 19, first=500)  # whatever it held is gone
    other.restore(copy.deepcopy(replay.snapshot()))
    assert read(other) == read(replay) and len(read(other)) == 13


# -- of a dataset


def dataset(reward, scale=1.0, **rest):
    episodes = [
        episode(3, success=True, seed=1),
        episode(4, success=False, seed=2),
        episode(2, success=False, terminated=True, seed=3),
    ]
    data = ListEpisodes(episodes, spec())
    return Transitions(data, 2, discount=0.5, reward=reward, reward_scale=scale, **rest)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("sparse", [-1, -1, 0, -1, -1, -1, -1, -1, -2]),  # -2: never to succeed is worth -1 / .5
        ("zero-one", [0, 0, 1, 0, 0, 0, 0, 0, 0]),
        ("dataset", [1, 2, 3, 1, 2, 3, 4, 1, 2]),
    ],
)
def test_every_step_of_a_dataset_by_hand(reward, expected):
    data = dataset(reward, scale=10.0)
    steps = dataset_steps(data, LAYOUT)
    assert steps.reward.tolist() == [10 * r for r in expected]
    # the first succeeds, the second meets its limit, the third breaks something
    assert steps.terminated.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert steps.state[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1]
    assert steps.next_state[:, 0].tolist() == [1, 2, 3, 1, 2, 3, 4, 1, 2]
    raw = np.concatenate([one.actions for one in data.episodes])
    torch.testing.assert_close(steps.act, torch.from_numpy(raw) / 2)  # bounds are +-2


def test_only_the_chosen_episodes():
    assert len(dataset_steps(dataset("sparse", indices=[0, 2]), LAYOUT)) == 5


def test_several_observations_in_order_of_their_keys():
    one = episode(3, success=True)
    one.obs["arm"] = np.arange(8.0).reshape(4, 2)  # float64
    data = Transitions(ListEpisodes([one], spec()), 1)
    steps = dataset_steps(data, StateLayout.of(data.obs_shapes))
    assert steps.state.dtype == torch.float32
    assert steps.state.tolist() == [[0, 1, 0], [2, 3, 1], [4, 5, 2]]
    assert steps.next_state[-1].tolist() == [6, 7, 3]


@pytest.mark.parametrize("reward", ["sparse", "zero-one", "dataset"])
def test_a_replay_that_saw_a_dataset_has_its_steps(reward):
    """What was done online and what is read from a file are paid alike."""
    data = dataset(reward, scale=3.0)
    replay = make(40)
    for one in data.episodes:
        for t in range(len(one)):
            last = t == len(one) - 1
            success, terminated = last and bool(one.success), last and one.terminated
            paid = online_reward(
                reward, one.rewards[t], success, terminated=terminated, discount=0.5
            )
            replay.add(
                0,
                {"state": one.obs["state"][t]},
                data.spec.normalize(one.actions[t]),
                3.0 * paid,
                {"state": one.obs["state"][t + 1]},
                success or terminated,
                last and not (success or terminated),
            )
    ours, theirs = replay_steps(replay, LAYOUT)[0], dataset_steps(data, LAYOUT)
    for name in ("state", "act", "reward", "next_state", "terminated"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), msg=name)


# -- of both


def test_both_together_have_keys_that_stay():
    replay = make(6)
    real = RealSteps(LAYOUT, replay, dataset("sparse"))
    steps, keys = real.read()
    assert len(steps) == 9 and keys.tolist() == list(range(9))
    play(replay, 3, first=70)
    steps, keys = real.read()
    assert steps.state[9:, 0].tolist() == [70, 71, 72] and keys.tolist() == list(range(12))
    play(replay, 4, first=73)  # the oldest are overwritten
    steps, keys = real.read()
    rows = dict(zip(keys[9:].tolist(), steps.state[9:, 0].tolist(), strict=True))
    assert rows == {9 + n: 70.0 + n for n in range(2, 7)}


def test_nothing_yet():
    with pytest.raises(InputError, match="no step for a world model"):
        RealSteps(LAYOUT, make(6)).read()
