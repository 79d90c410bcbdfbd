"""`CandidateCache`: candidates of a transition's next state are drawn now and then."""

import pytest
import torch

from genpol.agents.candidates import CandidateCache
from offline.errors import InputError

OFFLINE, SLOTS = 10, 5


class Drawn:
    """Draws what it was asked about and how often it has been asked, and remembers it."""

    def __init__(self):
        self.asked = []

    def __call__(self, obs):
        self.asked.append(obs["state"][:, 0].tolist())
        value = obs["state"][:, :1] + 100 * len(self.asked)
        return value[:, None, None].expand(-1, 2, 3, 1)


def make(max_age=4, memory="float32"):
    return CandidateCache(OFFLINE, SLOTS, 2, 3, 1, max_age, memory)


def ask(cache, keys, now, draw):
    """The first number of each row's candidates; states are numbered as the keys are."""
    obs = {"state": torch.tensor(keys, dtype=torch.float32)[:, None]}
    act = cache.candidates(torch.tensor(keys), obs, draw, now)
    assert act.shape == (len(keys), 2, 3, 1) and act.dtype == torch.float32
    return act[:, 0, 0, 0].tolist()


def test_known_ones_are_reused_until_they_are_too_old():
    cache, draw = make(max_age=4), Drawn()
    assert ask(cache, [3, 11], 0, draw) == [103, 111]
    assert ask(cache, [11, 4, 3], 4, draw) == [111, 204, 103]
    assert ask(cache, [3, 4], 5, draw) == [303, 204]  # of age 5 and 1
    assert draw.asked == [[3, 11], [4], [3]]


def test_a_hit_draws_nothing():
    cache, draw = make(), Drawn()
    ask(cache, [3], 0, draw)
    ask(cache, [3], 1, draw)
    assert len(draw.asked) == 1


def test_an_overwritten_slot_is_another_transition():
    cache, draw = make(), Drawn()
    slot = OFFLINE + 2
    ask(cache, [slot], 0, draw)
    assert ask(cache, [slot + SLOTS], 1, draw) == [200 + slot + SLOTS]
    assert ask(cache, [slot], 1, draw) == [300 + slot]  # gone
    assert ask(cache, [OFFLINE - 1], 1, draw) == [400 + OFFLINE - 1]


def test_unknown_ones_are_never_cached():
    cache, draw = make(), Drawn()
    assert ask(cache, [-1, -1], 0, draw) == [99, 99]
    ask(cache, [-1, 0], 0, draw)
    assert len(draw.asked[0]) == 2 and len(draw.asked[1]) == 2
    assert cache.state_dict()["key"].tolist() == [0]
    obs = {"state": torch.zeros(3, 1)}
    assert cache.candidates(None, obs, draw, 0).shape == (3, 2, 3, 1)
    assert draw.asked[-1] == [0, 0, 0]


def test_the_same_transition_twice_in_a_batch_is_drawn_once():
    cache, draw = make(), Drawn()
    assert ask(cache, [7, 2, 7, -1], 0, draw) == [107, 102, 107, 99]
    assert sorted(draw.asked[0]) == [-1, 2, 7]


def test_for_good():
    cache, draw = make(max_age=None), Drawn()
    ask(cache, [1], 0, draw)
    assert ask(cache, [1], 10**9, draw) == [101]
    cache.reset()
    assert ask(cache, [1], 0, draw) == [201]


def test_metrics():
    cache, draw = make(), Drawn()
    ask(cache, [1, 2], 0, draw)
    ask(cache, [1, 3], 3, draw)
    assert cache.metrics() == {"cache/hit_rate": 0.25, "cache/age": 3.0}
    assert cache.metrics() == {"cache/hit_rate": 0.0, "cache/age": 0.0}


def test_half_precision_is_what_is_served_at_once():
    """A hit and a miss are rounded alike."""
    cache = make(memory="float16")
    obs, keys = {"state": torch.tensor([[0.1234567]])}, torch.tensor([1])
    draws = []

    def draw(asked):
        draws.append(asked)
        return asked["state"][:, :1, None, None].expand(-1, 2, 3, 1)

    first = cache.candidates(keys, obs, draw, 0)
    assert torch.equal(first, cache.candidates(keys, obs, draw, 1)) and len(draws) == 1
    assert 0 < abs(first[0, 0, 0, 0].item() - 0.1234567) < 1e-4


def test_restored_bit_for_bit():
    batches = torch.randint(-1, OFFLINE + 3 * SLOTS, (40, 6), generator=torch.Generator())
    batches = [row for row in batches.tolist()]

    def go(cache, rows, now):
        out = []
        for keys in rows:
            noise = torch.Generator().manual_seed(now)
            obs = {"state": torch.tensor(keys, dtype=torch.float32)[:, None]}
            out.append(
                cache.candidates(
                    torch.tensor(keys),
                    obs,
                    lambda asked, noise=noise: torch.rand(
                        len(asked["state"]), 2, 3, 1, generator=noise
                    ),
                    now,
                )
            )
            now += 1
        return torch.stack(out)

    whole = make(memory="float16")
    expected = go(whole, batches, 0)
    part, other = make(memory="float16"), make(memory="float16")
    go(part, batches[:25], 0)
    ask(other, [1, 2, 14], 0, Drawn())  # forgotten by loading
    other.load_state_dict(part.state_dict())
    assert torch.equal(go(other, batches[25:], 25), expected[25:])
    assert other.metrics() == whole.metrics()


@pytest.mark.parametrize("sizes", [(-1, 5, 3), (5, -1, 3), (5, 5, -1), (0, 0, 3)])
def test_bad_sizes_are_named(sizes):
    rows, slots, age = sizes
    with pytest.raises(InputError, match="a cache needs"):
        CandidateCache(rows, slots, 2, 3, 1, age)
