import dataclasses

import numpy as np
import pytest
from toy_data import ListEpisodes, episode, spec

from offline.data.training_data import check_actions, check_dataset_fits
from offline.errors import InputError

STATE = {"state": (1,)}


def dataset(dim=1, **rest):
    episodes = [episode(4 + i, success=True, dim=dim, seed=i) for i in range(3)]
    return ListEpisodes(episodes, rest.pop("spec", spec(dim)), **rest)


def message(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# -- does it fit the environment


def test_what_fits():
    check_dataset_fits(dataset(), "toy/line", STATE, spec())
    check_dataset_fits(dataset(), "toy/line", {**STATE, "camera": (8, 8, 3)}, spec())
    check_dataset_fits(dataset(env=None), "toy/line", STATE, spec())
    check_dataset_fits(dataset(env="Walk-v2"), "Walk-v5", STATE, spec())
    unbounded = dataclasses.replace(spec(), low=(-np.inf,), high=(np.inf,))
    check_dataset_fits(dataset(spec=unbounded), "toy/line", STATE, spec())


def test_bounds_that_were_only_guessed_from_the_data_are_not_compared():
    data = dataset(spec=dataclasses.replace(spec(), low=(-0.7,), high=(0.9,)))
    data.meta["spec_from"] = "data"
    check_dataset_fits(data, "toy/line", STATE, spec())


def test_only_the_observations_in_use_need_to_fit():
    data = dataset()
    data.obs_shapes["extra"] = (3,)
    check_dataset_fits(data, "toy/line", STATE, spec(), ["state"])
    with pytest.raises(InputError, match='"extra".*--obs-keys'):
        check_dataset_fits(data, "toy/line", STATE, spec())


@pytest.mark.parametrize(
    ("data", "env", "shapes", "action_spec", "expected"),
    [
        (dataset(), "toy/ring", STATE, spec(), 'recorded in "toy/line", this is "toy/ring"'),
        (dataset(), "toy/line", {"states": (1,)}, spec(), '"state".*Did you mean "states"'),
        (dataset(), "toy/line", {"state": (2,)}, spec(), r'"state".*\(1,\).*\(2,\)'),
        (dataset(2), "toy/line", STATE, spec(), "A=2.*A=1"),
        (
            dataset(),
            "toy/line",
            STATE,
            dataclasses.replace(spec(), high=(1.0,)),
            r"dimension 0 .*\[-2, 2\] in the dataset, in \[-2, 1\]",
        ),
    ],
)
def test_what_does_not(data, env, shapes, action_spec, expected):
    with pytest.raises(InputError, match=expected) as error:
        check_dataset_fits(data, env, shapes, action_spec)
    message(error)


# -- actions out of bounds


def test_actions_within_bounds_or_rounding():
    data = dataset(dim=2)
    data[1].actions[2] = 2.0039, -2.0039  # a thousandth of the width is .004
    check_actions(data, spec(2))


def test_actions_outside_are_counted_and_the_first_named():
    data = dataset(dim=2)
    data[1].actions[3, 1] = -2.5
    data[2].actions[0] = 9, 9  # one action, though both its dimensions are outside
    data[2].actions[4, 0] = 2.005
    with pytest.raises(InputError) as error:
        check_actions(data, dataclasses.replace(spec(2), names=("x", "y")))
    assert message(error).startswith(
        "3 of 15 actions lie outside their bounds, first in episode 1, step 3, dimension 1 (y): "
        "-2.5 is not in [-2, 2]"
    )
    with pytest.raises(InputError, match="2 of 6 actions.*episode 2, step 0, dimension 0"):
        check_actions(data, spec(2), [2])
    check_actions(data, spec(2), [0])


def test_dimensions_without_bounds_are_let_pass():
    data = dataset()
    data[0].actions[0] = 1e6
    check_actions(data, dataclasses.replace(spec(), low=(-np.inf,), high=(np.inf,)))
    with pytest.raises(InputError, match="1 of 15"):
        check_actions(data, dataclasses.replace(spec(), low=(-np.inf,)))


def test_nan_is_named():
    data = dataset()
    data[1].actions[0] = np.nan
    with pytest.raises(InputError, match="episode 1.*NaN"):
        check_actions(data, spec())
    data = dataset()
    data[2].obs["state"][1] = np.inf
    with pytest.raises(InputError, match='episode 2: "state".*NaN or infinite'):
        check_actions(data, spec())
