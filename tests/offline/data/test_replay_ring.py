import numpy as np
import pytest
import torch
from replay_steps import GAMMA, draw, everything, make, play, same, states


@pytest.mark.parametrize(("lanes", "n_step"), [(1, 2), (1, 3), (3, 2), (3, 4)])
def test_against_a_list_of_all_that_ever_happened(lanes, n_step):
    """Random episodes in random order, wrapping many times: what can be drawn is, in each lane,
    what starts in the newest slots, and each transition is as a plain list says."""
    rng = np.random.default_rng(n_step)
    size = 11
    replay = make(lanes * size, lanes=lanes, n_step=n_step)
    slots = [[] for _ in range(lanes)]  # (state, reward or None at the end, episode), ever
    ended = {}  # episode -> how
    episode = list(range(lanes))
    left = [0] * lanes
    state = [1000 * lane for lane in range(lanes)]
    for _ in range(400):
        lane = int(rng.integers(lanes))
        if not left[lane]:
            left[lane] = int(rng.integers(1, 16))  # some are longer than the ring
            episode[lane] += lanes
            slots[lane].append([state[lane], None, episode[lane]])
        left[lane] -= 1
        ends = "" if left[lane] else str(rng.choice(["terminated", "truncated", "cut"]))
        reward = float(rng.integers(1, 9))
        play(replay, 1, lane=lane, first=state[lane], ends=ends, rewards=[reward])
        if ends == "cut":
            replay.cut(lane)
        slots[lane][-1][1] = reward
        slots[lane].append([state[lane] + 1, None, episode[lane]])
        state[lane] += 1 if left[lane] else 2
        ended[episode[lane]] = ends

        expected = {}
        for one, history in enumerate(slots):
            for age in range(max(0, len(history) - size), len(history)):
                first, reward, which = history[age]
                rest = [s for s in history[age:] if s[2] == which]
                rewards = [s[1] for s in rest[:-1]]
                whole = ended.get(which) == "terminated"
                if not rewards or (len(rewards) < n_step and not whole):
                    continue
                span = min(n_step, len(rewards))
                final = whole and len(rewards) <= n_step
                expected[first] = (
                    sum(GAMMA**i * r for i, r in enumerate(rewards[:span])),
                    0 if final else GAMMA**n_step,
                    rest[span][0],
                    sum(GAMMA**i * r for i, r in enumerate(rewards)) if whole else -1,
                    (age % size) * lanes + one + age // size * lanes * size,
                    [min(first + i, first + span - 1) for i in range(2)],
                )
        assert len(replay) == len(expected)
        batch = everything(replay)
        assert states(batch) == sorted(expected)
        if not expected:
            continue
        wanted = [torch.tensor(v) for v in zip(*(expected[s] for s in states(batch)), strict=True)]
        torch.testing.assert_close(batch.reward, wanted[0])
        torch.testing.assert_close(batch.discount, wanted[1].float())
        assert torch.equal(batch.next_obs["state"][:, 0], wanted[2].float())
        torch.testing.assert_close(batch.mc_return.nan_to_num(-1), wanted[3].float())
        assert torch.equal(batch.key, wanted[4])
        torch.testing.assert_close(batch.act[..., 0] * 1000, wanted[5].float())


def test_every_slot_is_used_and_equally_likely():
    """One long episode in a ring of 10: its newest 10 slots hold 9 steps, 8 of which start."""
    replay = make(10)
    play(replay, 1000)
    first = draw(replay)
    counts = first.obs["state"].unique(return_counts=True)
    assert counts[0].tolist() == list(range(991, 999))
    assert counts[1].min() > 0.8 * 4000 / 8
    slots = set()
    for start in range(1000, 1010):
        play(replay, 1, first=start)
        slots |= set((draw(replay, 200).key % replay.slots).tolist())
    assert slots == set(range(10))  # the last one too


def test_draws_are_uniform_over_lanes_that_hold_unequal_numbers():
    replay = make(40, lanes=2)
    play(replay, 4, lane=0)
    play(replay, 10, lane=1, first=100)
    counts = draw(replay, 6000).obs["state"].unique(return_counts=True)[1]
    assert len(counts) == 3 + 9 and counts.min() > 0.8 * 500 and counts.max() < 1.2 * 500


def test_a_key_is_never_given_twice():
    replay = make(12, lanes=2)
    seen = {}
    for t in range(60):
        for lane in (0, 1):
            play(replay, 1, lane=lane, first=1000 * lane + t)
        if not len(replay):
            continue
        batch = everything(replay)
        for key, state in zip(batch.key.tolist(), states(batch), strict=True):
            assert seen.setdefault(key, state) == state
    assert len(seen) == len(set(seen.values())) == 2 * 59


def test_the_same_generator_draws_the_same():
    replay = make(50)
    play(replay, 40)
    same(draw(replay, 20, seed=3), draw(replay, 20, seed=3))
    assert not torch.equal(draw(replay, 20, seed=3).key, draw(replay, 20, seed=4).key)


def test_recent_are_the_newest_whose_return_is_known():
    replay = make(16)
    play(replay, 3, first=0, ends="terminated")
    play(replay, 3, first=10, ends="truncated")
    play(replay, 4, first=20, ends="terminated")
    play(replay, 3, first=30)  # runs, and has overwritten state 0
    assert states(replay.recent(5)) == [23, 22, 21, 20, 2]
    assert states(replay.recent(100)) == [23, 22, 21, 20, 2, 1]
    assert len(make(14).recent(5)) == 0
