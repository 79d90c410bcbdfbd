import numpy as np
import pytest
import torch
from toy_data import ListEpisodes, episode, spec

from offline.data.transitions import Transitions
from offline.errors import InputError


def dataset(**rest):
    episodes = [
        episode(5, success=True, seed=1, language="left"),
        episode(7, success=False, seed=2, language="right"),
        episode(4, success=True, seed=3, language="left"),
    ]
    return ListEpisodes(episodes, spec(), **rest)


def all_rows(data):
    (batch,) = data.batches(1000)
    return batch


def test_rows_by_hand():
    data = Transitions(dataset(), 3, discount=0.5)
    assert len(data) == 5 + (7 - 3 + 1) + 4
    batch = all_rows(data)
    # the first episode's row 3: actions 3, 4 and 4 again; what follows is its last state
    raw = torch.from_numpy(data.episodes[0].actions)
    expected = raw[[3, 4, 4]] / 2  # bounds are +-2
    torch.testing.assert_close(batch.act[3], expected)
    assert batch.obs["state"][3].item() == 3 and batch.next_obs["state"][3].item() == 5
    assert batch.discount[3] == 0 and batch.discount[1] == 0.125
    # the failure's last row bootstraps at its last state
    assert batch.obs["state"][9].item() == 4 and batch.next_obs["state"][9].item() == 7
    assert batch.discount[9] == 0.125 and batch.success[9] == 0


def test_no_chunk_crosses_into_another_episode():
    batch = all_rows(Transitions(dataset(), 3))
    step = batch.next_obs["state"] - batch.obs["state"]
    assert step.min() >= 1 and step.max() <= 3


def test_sampling_covers_all_rows_evenly_and_repeats_by_seed():
    data = Transitions(dataset(), 2)
    first = data.sample(4000, torch.Generator().manual_seed(0))
    again = data.sample(4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(first.act, again.act)
    _, counts = first.act.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == len(data)
    assert counts.min() > 0.7 * 4000 / len(data)


def test_streaming_gives_the_same_rows():
    whole = Transitions(dataset(), 2)
    stream = Transitions(dataset(), 2, memory_limit=400)
    assert stream.streamed and not whole.streamed
    assert len(stream) == len(whole)
    np.testing.assert_allclose(stream.obs_stats["state"][0], whole.obs_stats["state"][0])
    ordered = torch.cat([b.act for b in stream.batches(3)])
    torch.testing.assert_close(ordered, all_rows(whole).act)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([stream.sample(8, generator).act for _ in range(300)])
    counts = drawn.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == len(whole)  # the buffer holds one or two episodes, yet all come by
    assert counts.min() > 0.4 * 2400 / len(whole)


def test_streaming_reads_ahead_no_more_than_the_limit():
    stream = Transitions(dataset(), 2, memory_limit=400)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        stream.sample(8, generator)
        held = sum(len(rows.reward) for rows in list(stream._buffer)[:-1])
        assert held < stream._buffer_steps  # at most the last one goes beyond


def test_splits_and_indices():
    parts = {"train": np.array([0, 2]), "valid": np.array([1])}
    assert len(Transitions(dataset(splits=parts), 1)) == 9
    assert len(Transitions(dataset(splits=parts), 1, split="valid")) == 7
    assert len(Transitions(dataset(splits=parts), 1, indices=[2])) == 4
    with pytest.raises(InputError, match='Did you mean "valid"'):
        Transitions(dataset(splits=parts), 1, split="vald")


def test_statistics():
    data = Transitions(dataset(), 1)
    states = np.concatenate([e.obs["state"] for e in data.episodes])
    np.testing.assert_allclose(data.obs_stats["state"][0], states.mean(0), rtol=1e-5)
    np.testing.assert_allclose(data.obs_stats["state"][1], states.std(0), rtol=1e-5)
    assert (data.successes, data.failures) == (2, 1)
    assert data.instructions == {"left", "right"}


def test_language_is_embedded_for_each_row():
    table = {"left": torch.tensor([1.0, 0]), "right": torch.tensor([0.0, 1])}
    data = Transitions(dataset(), 2, language=lambda text: table[text])
    batch = all_rows(data)
    assert data.obs_shapes["language"] == (2,)
    expected = torch.where(batch.success[:, None] > 0, table["left"], table["right"])
    torch.testing.assert_close(batch.obs["language"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 9, "indices": [1]}, "longest has 7 steps"),
        ({"chunk": 2, "obs_keys": ["stat"]}, 'Did you mean "state"'),
        ({"chunk": 2, "indices": []}, "no episodes"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        Transitions(dataset(), **options)


def test_a_faulty_episode_is_named():
    data = dataset()
    data[1].actions[0] = np.nan
    with pytest.raises(InputError, match="episode 1.*NaN"):
        Transitions(data, 2)


@pytest.mark.parametrize("memory_limit", [2 << 30, 400])
def test_rewards_are_scaled(memory_limit):
    def read(**rest):
        return Transitions(dataset(), 2, reward="zero-one", memory_limit=memory_limit, **rest)

    plain, scaled = read(), read(reward_scale=5.0)
    one, five = (torch.cat([b.reward for b in d.batches(3)]) for d in (plain, scaled))
    assert one.max() == 1
    torch.testing.assert_close(five, 5 * one)
    back = [torch.cat([b.mc_return for b in d.batches(3)]) for d in (plain, scaled)]
    torch.testing.assert_close(back[1], 5 * back[0])


def test_targets_may_lie_beyond_the_chunk():
    data = Transitions(dataset(), 2, discount=0.5, n_step=3)
    batch = all_rows(data)
    assert len(data) == 5 + (7 - 3 + 1) + 4 and batch.act.shape[1] == 2
    assert (batch.next_obs["state"] - batch.obs["state"])[:, 0].tolist() == [
        3, 3, 3, 2, 1,  3, 3, 3, 3, 3,  3, 3, 2, 1,
    ]  # fmt: skip
    assert batch.discount.tolist() == [0.125, 0.125, 0, 0, 0, *[0.125] * 6, 0, 0, 0]
    assert batch.reward[0] == -1.75 and batch.reward[2] == -1.5
