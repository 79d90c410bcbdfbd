from dataclasses import dataclass

import pytest
import torch
from toy_data import ListEpisodes, episode, spec

from offline.data.batch import Batch
from offline.data.mixture import Mixture, Share
from offline.data.transitions import Transitions
from offline.errors import InputError


@dataclass
class Source:
    """Transitions whose reward says where they are from."""

    reward: float
    size: int = 10
    known: bool = True

    def __len__(self):
        return self.size

    def sample(self, batch_size, generator=None):
        rows = torch.randint(self.size, (batch_size,), generator=generator)
        value = torch.full((batch_size,), self.reward)
        obs = {"state": rows[:, None].float()}
        key = rows if self.known else torch.full_like(rows, -1)
        return Batch(obs, torch.zeros(batch_size, 1, 1), value, obs, value, value, value, key)


def mixture(*fractions, sizes=(10, 10, 10)):
    names = ["offline", "online", "imagined"]
    return Mixture(
        [
            Share(name, Source(i, size), fraction, key_offset=100 * i)
            for i, (name, size, fraction) in enumerate(zip(names, sizes, fractions, strict=False))
        ]
    )


def test_shares_are_exact():
    assert mixture(0.5, 0.3, 0.2).counts(10) == {"offline": 5, "online": 3, "imagined": 2}
    batch = mixture(0.5, 0.3, 0.2).sample(10)
    assert batch.reward.tolist() == [0] * 5 + [1] * 3 + [2] * 2


@pytest.mark.parametrize("size", range(1, 20))
@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.1), (0.34, 0.33, 0.33), (0.1, 0.2, 0.7)])
def test_counts_are_whole_and_sum_to_the_batch(size, fractions):
    counts = mixture(*fractions).counts(size)
    assert sum(counts.values()) == size
    for count, fraction in zip(counts.values(), fractions, strict=True):
        assert abs(count - size * fraction) < 1


def test_a_share_of_nothing_is_not_drawn_from():
    assert mixture(1.0, 0.0).counts(8) == {"offline": 8}
    assert len(mixture(1.0, 0.0)) == 10 and len(mixture(0.5, 0.5)) == 20


def test_an_empty_source_leaves_its_share_to_the_others():
    assert mixture(0.5, 0.5, sizes=(10, 0)).counts(8) == {"offline": 8}
    assert mixture(0.25, 0.5, 0.25, sizes=(5, 0, 5)).counts(8) == {"offline": 4, "imagined": 4}


def test_a_source_that_fills_up_is_drawn_from():
    source = Source(1, size=0)
    shares = Mixture([Share("offline", Source(0), 0.5), Share("online", source, 0.5)])
    assert shares.sample(4).reward.tolist() == [0] * 4
    source.size = 3
    assert shares.sample(4).reward.tolist() == [0, 0, 1, 1]


def test_keys_are_told_apart():
    batch = mixture(0.5, 0.5).sample(40, torch.Generator().manual_seed(0))
    assert (batch.key[:20] < 10).all() and (batch.key[20:] >= 100).all()
    assert torch.equal(batch.key % 100, batch.obs["state"][:, 0].long())


def test_what_cannot_be_told_again_stays_so():
    shares = [Share("a", Source(0, known=False), 0.5, 7), Share("b", Source(1), 0.5, 50)]
    key = Mixture(shares).sample(8).key
    assert (key[:4] == -1).all() and (key[4:] >= 50).all()


def test_the_same_generator_draws_the_same():
    draws = [mixture(0.5, 0.5).sample(30, torch.Generator().manual_seed(2)) for _ in range(2)]
    assert torch.equal(draws[0].key, draws[1].key)


def test_a_dataset_is_a_source():
    data = Transitions(ListEpisodes([episode(9, success=True)], spec()), 2)
    batch = Mixture([Share("offline", data, 1.0, key_offset=3)]).sample(6)
    assert len(batch) == 6 and (batch.key >= 3).all()


def test_bad_shares():
    with pytest.raises(InputError, match="sum to 1, received offline 0.5, online 0.2"):
        mixture(0.5, 0.2)
    with pytest.raises(InputError, match="at least 0"):
        mixture(1.5, -0.5)
    with pytest.raises(InputError, match="nothing to learn from yet"):
        mixture(0.5, 0.5, sizes=(0, 0)).sample(4)
