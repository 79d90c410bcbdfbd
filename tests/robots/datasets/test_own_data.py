"""Episodes in memory, and readers of a user's own by "module:function@path"."""

from __future__ import annotations

import numpy as np
import pytest
from toy_data import episode, spec

from offline.data.transitions import Transitions
from offline.errors import InputError
from robots.datasets.memory import EpisodeList
from robots.datasets.open import as_episodes, open_dataset

EPISODES = [episode(steps, success=steps > 4, seed=steps) for steps in (3, 5, 8)]
ACTIONS = np.concatenate([e.actions for e in EPISODES])


def test_episodes_in_memory_are_a_dataset():
    data = EpisodeList(EPISODES, spec=spec(), env="toy/line", splits={"train": [0, 2]})
    assert len(data) == 3 and data.lengths.tolist() == [3, 5, 8] and data[1] is EPISODES[1]
    assert data.obs_shapes == {"state": (1,)} and data.env == "toy/line"
    assert data.spec.low == (-2.0,) and data.spec.mean == pytest.approx(ACTIONS.mean(0))
    assert data.spec.std == pytest.approx(ACTIONS.std(0), rel=1e-5)
    assert Transitions(data, 3).indices.tolist() == [0, 2]  # the split "train"


def test_without_a_spec_bounds_are_those_of_the_actions():
    data = EpisodeList(EPISODES)
    assert data.spec.low == pytest.approx(ACTIONS.min(0)) and data.meta["spec_from"] == "data"
    gentle = [episode(4)]
    gentle[0].actions[:] *= 0.4
    assert EpisodeList(gentle).spec.low == (-1.0,)


@pytest.mark.parametrize(
    ("episodes", "said"),
    [
        ([], "at least one episode"),
        ([EPISODES[0], episode(4, dim=2)], "episode 1 has actions"),
    ],
)
def test_what_is_no_dataset_is_refused(episodes, said):
    with pytest.raises(InputError, match=said):
        EpisodeList(episodes)


@pytest.fixture
def readers(tmp_path, monkeypatch):
    (tmp_path / "their_logs.py").write_text(
        "from toy_data import episode\n"
        "def read(path):\n"
        "    return [episode(int(n)) for n in open(path).read().split()]\n"
        "def wrong(path):\n"
        "    return {'path': path}\n"
    )
    (tmp_path / "run@1.log").write_text("3 5")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_reader_is_called_with_the_path(readers):
    data = open_dataset(f"their_logs:read@{readers / 'run@1.log'}")
    assert data.lengths.tolist() == [3, 5]


def test_what_goes_wrong_in_a_reader_is_one_line(readers):
    with pytest.raises(InputError, match="their_logs:read cannot read .*: FileNotFoundError"):
        open_dataset("their_logs:read@missing.log")
    with pytest.raises(InputError, match="their_logs:wrong returned is a dict, expected a list"):
        open_dataset("their_logs:wrong@x")
    with pytest.raises(InputError, match='there is no "reed". Did you mean "read"'):
        open_dataset("their_logs:reed@x")


def test_a_dataset_stays_what_it_is():
    data = EpisodeList(EPISODES)
    assert as_episodes(data, "data") is data
    assert len(as_episodes(EPISODES, "data")) == 3


class Lazy(EpisodeList):
    """A reader's own dataset, one of whose episodes cannot be read."""

    def __getitem__(self, index):
        return [EPISODES[0], 1 / 0][index] if index else EPISODES[0]


def lazy(path):
    return Lazy(EPISODES)


def wrong_lengths(path):
    data = Lazy(EPISODES)
    data.lengths = ["three", "five", "eight"]
    return data


def test_a_readers_episodes_are_checked_as_they_are_read(monkeypatch):
    data = open_dataset(f"{__name__}:lazy@x")
    assert len(data[0]) == 3 and data.splits == {}
    with pytest.raises(InputError, match="cannot read episode 1 of .*ZeroDivisionError"):
        data[1]
    with pytest.raises(InputError, match="expected one whole number for each"):
        open_dataset(f"{__name__}:wrong_lengths@x")
