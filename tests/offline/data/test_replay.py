import copy

import numpy as np
import pytest
import torch
from replay_steps import draw, everything, make, play, same, states

from offline.data.replay_storage import allocate
from offline.errors import InputError

# -- one episode by hand


def test_a_terminated_episode_by_hand():
    replay = make(20)
    play(replay, 4, ends="terminated", success=True, rewards=[1, 2, 3, 4])
    batch = everything(replay)
    assert states(batch) == [0, 1, 2, 3]
    assert batch.reward.tolist() == [1 + 2 / 2, 2 + 3 / 2, 3 + 4 / 2, 4]
    assert batch.discount.tolist() == [0.25, 0.25, 0, 0]
    assert batch.next_obs["state"][:, 0].tolist() == [2, 3, 4, 4]
    torch.testing.assert_close(
        batch.act[..., 0] * 1000, torch.tensor([[0.0, 1], [1, 2], [2, 3], [3, 3]])
    )
    assert batch.mc_return.tolist() == [3.25, 4.5, 5, 4]  # 4; 3 + 2; 2 + 5 / 2; 1 + 4.5 / 2
    assert batch.success.tolist() == [1] * 4
    assert batch.key.tolist() == [0, 1, 2, 3]


def test_n_steps_beyond_the_chunk():
    replay = make(20, chunk=1, n_step=3)
    play(replay, 4, ends="terminated", rewards=[1, 2, 3, 4])
    batch = everything(replay)
    assert batch.act.shape == (4, 1, 1)
    assert batch.reward.tolist() == [1 + 1 + 0.75, 2 + 1.5 + 1, 5, 4]
    assert batch.discount.tolist() == [0.125, 0, 0, 0]
    assert batch.next_obs["state"][:, 0].tolist() == [3, 4, 4, 4]
    torch.testing.assert_close(batch.act[:, 0, 0] * 1000, torch.arange(4.0))


def test_a_chunk_longer_than_its_terminated_episode():
    replay = make(20, chunk=4)
    play(replay, 2, first=5, ends="terminated")
    batch = everything(replay)
    torch.testing.assert_close(
        batch.act[..., 0] * 1000, torch.tensor([[5.0, 6, 6, 6], [6, 6, 6, 6]])
    )
    assert batch.discount.tolist() == [0, 0] and batch.reward.tolist() == [8, 6]


def test_a_time_limit_bootstraps_and_drops_what_is_incomplete():
    replay = make(20)
    play(replay, 4, ends="truncated", success=False)
    batch = everything(replay)
    assert states(batch) == [0, 1, 2]
    assert batch.discount.tolist() == [0.25] * 3
    assert batch.next_obs["state"][-1] == 4  # the final observation is kept
    assert batch.mc_return.isnan().all() and batch.success.tolist() == [0] * 3


def test_terminated_at_the_limit_is_terminated():
    replay = make(20)
    state = {"state": np.zeros(1)}
    replay.add(0, state, np.zeros(1), 1.0, state, True, True)
    assert everything(replay).discount.tolist() == [0]


def test_a_running_episode_is_drawn_from_as_far_as_it_goes():
    replay = make(20)
    play(replay, 1)
    assert len(replay) == 0
    play(replay, 2, first=1)
    batch = everything(replay)
    assert states(batch) == [0, 1]
    assert batch.mc_return.isnan().all() and batch.success.isnan().all()
    play(replay, 1, first=3, ends="terminated", success=True)
    assert everything(replay).success.tolist() == [1] * 4


def test_nothing_crosses_from_one_episode_into_another():
    replay = make(60, chunk=3)
    for episode, ends in enumerate(["terminated", "truncated", "terminated"]):
        play(replay, 7, first=100 * episode, ends=ends)
    batch = everything(replay)
    assert (batch.next_obs["state"] - batch.obs["state"]).max() <= 3
    assert len(replay) == 7 + 5 + 7


def test_an_episode_given_up():
    replay = make(20)
    replay.cut(0)  # nothing runs yet
    play(replay, 3)
    replay.cut(0)
    replay.cut(0)
    play(replay, 2, first=50, ends="terminated")
    batch = everything(replay)
    assert states(batch) == [0, 1, 50, 51]
    assert batch.mc_return.isnan().tolist() == [True, True, False, False]
    assert batch.key.tolist() == [0, 1, 4, 5]  # state 3, the last one seen, has slot 3


def test_an_observation_that_does_not_follow_is_refused():
    replay = make(20)
    play(replay, 3)
    with pytest.raises(ValueError, match=r"lane 0.*cut\(\)"):
        play(replay, 1, first=9)


# -- what is kept


def image_replay(**rest):
    return make(8, shapes={"camera": (4, 4, 3), "state": (1,)}, **rest)


def film(replay, steps, first=0):
    for t in range(first, first + steps):
        obs, following = (
            {"camera": np.full((4, 4, 3), x % 256, np.uint8), "state": np.array([float(x)])}
            for x in (t, t + 1)
        )
        replay.add(0, obs, np.zeros(1), 0.0, following, False, False)


def test_images_stay_bytes_in_memory_or_in_a_file(tmp_path):
    in_memory, in_file = image_replay(), image_replay(folder=tmp_path / "ring", memory_limit=700)
    assert isinstance(in_file._arrays["obs.camera"], np.memmap)
    assert not isinstance(in_file._arrays["reward"], np.memmap)  # small, and read by every draw
    for replay in (in_memory, in_file):
        film(replay, 30)
    same(draw(in_memory), draw(in_file))
    batch = draw(in_file)
    assert batch.obs["camera"].dtype == torch.uint8 and batch.obs["state"].dtype == torch.float32
    assert torch.equal(batch.obs["camera"][:, 0, 0, 0].float(), batch.obs["state"][:, 0])


@pytest.mark.parametrize("filled", [0, 3, 30])
def test_resuming_is_bit_for_bit(filled, tmp_path):
    """Saved in the middle of an episode; the one goes on, the other is another object."""
    whole = image_replay(folder=tmp_path, memory_limit=0)
    film(whole, filled)
    state = copy.deepcopy(whole.snapshot())
    assert len(state.arrays["obs.camera"]) == min(8, filled + bool(filled))
    other = image_replay()
    film(other, 5, first=100)  # whatever it held is gone
    other.restore(state)
    assert len(whole) == len(other)
    if len(whole):
        same(draw(whole), draw(other))
    for replay in (whole, other):
        film(replay, 20, first=filled)
        replay.cut(0)
        film(replay, 3, first=500)
    same(draw(whole), draw(other))
    assert torch.equal(whole._starts.members(), other._starts.members())


def test_resuming_unequal_lanes():
    whole, other = make(30, lanes=3), make(30, lanes=3)
    play(whole, 7, lane=2, ends="terminated", success=True)
    play(whole, 4, lane=0, first=50)
    other.restore(copy.deepcopy(whole.snapshot()))
    for replay in (whole, other):
        play(replay, 2, lane=0, first=54, ends="terminated")
        play(replay, 30, lane=1, first=200)
    same(draw(whole), draw(other))
    same(whole.recent(9), other.recent(9))


# -- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 2}, "--replay-capacity must be at least 3 .*received 2"),
        ({"capacity": 9, "lanes": 5}, "at least 11 .*each of 5"),
        ({"capacity": 9, "n_step": 1}, r"--n-step must be at least the action chunk \(2\)"),
    ],
)
def test_sizes_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_the_smallest_ring_still_gives_transitions():
    replay = make(3)
    play(replay, 9)
    assert states(draw(replay, 5)) == [7] * 5


def test_steps_that_do_not_fit():
    replay = make(9)
    good = {"state": np.zeros(1)}
    with pytest.raises(InputError, match=r'"state" has shape \(2,\)'):
        replay.add(0, {"state": np.zeros(2)}, np.zeros(1), 0.0, good, False, False)
    with pytest.raises(InputError, match='no observation "state".*"stat"'):
        replay.add(0, {"stat": np.zeros(1)}, np.zeros(1), 0.0, good, False, False)
    with pytest.raises(InputError, match=r"shape \(1,\), received \(2, 1\)"):
        replay.add(0, good, np.zeros((2, 1)), 0.0, good, False, False)


def test_a_disk_that_is_too_small(tmp_path):
    with pytest.raises(InputError, match="GiB free: pass a smaller --replay-capacity"):
        allocate({"obs.camera": ((10**12, 64, 64, 3), np.uint8)}, tmp_path, memory_limit=100)


def test_an_empty_replay_says_so():
    with pytest.raises(InputError, match="no transition of 2 steps"):
        make(9).sample(4)


def test_the_state_of_another_replay_is_refused():
    with pytest.raises(InputError, match="slots 9, this one has 10"):
        make(10).restore(make(9).snapshot())
