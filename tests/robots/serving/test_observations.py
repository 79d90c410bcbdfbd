"""Robots' messages as observations: what does not fit is answered with its key's name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offline.errors import InputError, SpecError
from robots.serving.observations import Observations, merged


def test_observations_that_do_not_fit_are_answered_with_the_keys_name():
    shapes = {"state": (3,), "image": (4, 4, 3), "language": (384,)}
    asked = []

    def embed(text):
        asked.append(text)
        return torch.ones(1, 384)

    observations = Observations(
        shapes, rename={"observation/state": "state", "images/cam": "image"}, embed=embed
    )
    image = np.zeros((4, 4, 3), np.uint8)
    message = {"observation/state": [1, 2, 3], "images": {"cam": image}, "prompt": "push"}
    obs = observations(message)
    observations(message)
    assert {k: tuple(v.shape) for k, v in obs.items()} == {k: (1, *s) for k, s in shapes.items()}
    assert obs["image"].dtype == torch.uint8 and obs["state"].dtype == torch.float32
    assert asked == ["push"]
    for changes, said in [
        ({"observation/state": None}, '"state" is NoneType'),
        ({"observation/state": [1, [2], 3]}, '"state" is list, expected numbers'),
        ({"observation/state": np.zeros((1, 3))}, "without a batch axis"),
        ({"observation/state": np.array([0, 0, np.inf])}, "NaN or infinite"),
        ({"images": {"cam": image / 255}}, "dtype float64, expected an image of uint8"),
        ({"images": {"cam2": image}}, r'no "image".*--rename KEY=image'),
        ({"prompt": ""}, 'no "prompt"'),
        ({"prompt": 3}, 'no "prompt"'),
        ({"prompt": np.zeros(3)}, 'no "prompt"'),
        ({"prompt": "x" * 5000}, '"prompt" has 5000 characters, expected up to 4000'),
        ({"observation/state": np.full(3, 1e300)}, "NaN or infinite"),
        ({"observation/state": [2**64, 2**80, 1]}, '"state" is list, expected numbers'),
        ({"observation/state": ["1", "2", "3"]}, '"state" is list, expected numbers'),
        ({"observation/state": np.array(["1"] * 3)}, '"state" is an array of dtype <U1'),
        ({"observation/state": np.zeros(3, complex)}, '"state" is an array of dtype complex'),
        ({"observation/state": np.zeros([1] * 40)}, r'"state" has shape \(1, .*\.\.\.'),
        ({"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {}}}}}}}}}, "nested more than 8 deep"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            observations({**message, **changes})
        assert len(str(caught.value)) < 300
    many = {f"key {number}" * 20: 1 for number in range(1000)}
    with pytest.raises(InputError, match='no "state"') as caught:
        Observations({"state": (3,)})(many)
    assert len(str(caught.value)) < 5000  # of which the server sends what fits into a line
    with_default = Observations({"language": (384,)}, embed=embed, prompt="pull")
    assert with_default({})["language"].shape == (1, 384) and asked[-1] == "pull"
    with_default({"prompt": np.asarray("lift")})  # as openpi's clients may send it
    assert asked[-1] == "lift"
    anything = Observations({"b": (4, 4, 3)}, others=True)({"a": 1.5, "text": "x", "b": image})
    assert {key: tuple(value.shape) for key, value in anything.items()} == {
        "a": (1,),
        "b": (1, 4, 4, 3),
    }


def test_shapes_of_several_components():
    assert merged({"a": (3,)}, {"a": [3], "b": (4, 4, 3)}) == {"a": (3,), "b": (4, 4, 3)}
    with pytest.raises(SpecError, match='"a" has shape'):
        merged({"a": (3,)}, {"a": (4,)})


def test_names_that_can_be_one_thing_only_need_no_renaming(caplog):
    shapes = {"state": (2,), "images.top": (4, 4, 3)}
    image = np.full((4, 4, 3), 7, np.uint8)
    for message in (
        {"state": [1, 2], "images.top": image},
        {"observation.state": [1, 2], "observation.images.top": image},
        {"observation/state": [1, 2], "observation/images/top": image},
        {"observation": {"state": [1, 2], "images": {"top": image}}},
        {"obs": {"state": [1, 2]}, "top": image},
    ):
        obs = Observations(shapes)(message)
        assert obs["state"].tolist() == [[1, 2]] and (obs["images.top"] == 7).all()
    both = {"observation/state": [1, 2], "obs.state": [3, 4], "images.top": image}
    with pytest.raises(InputError, match='"state" is ambiguous.*pass --rename KEY=KEY'):
        Observations(shapes)(both)
    obs = Observations(shapes, rename={"obs.state": "state"})(both)  # the user has said which
    assert obs["state"].tolist() == [[3, 4]]
    # what else is sent keeps its name beside, for a component that does not say what it needs
    obs = Observations({"state": (2,)}, others=True)({"observation.state": [1, 2], "extra": 5.0})
    assert sorted(obs) == ["extra", "state"]


def test_pictures_of_another_size_are_resized_and_said_once(caplog):
    big = np.zeros((8, 12, 3), np.uint8)
    big[:, 6:] = 200
    observations = Observations({"image": (4, 4, 3)})
    for _ in range(2):
        seen = observations({"image": big})["image"]
        assert seen.shape == (1, 4, 4, 3)
        assert seen[0, :, 0].max() < 20 and seen[0, :, -1].min() > 180
    assert sum("resized to 4 x 4" in line for line in caplog.messages) == 1
    # a policy that does not say what it needs gets them as they are; its critic resizes them
    assert Observations({"image": (4, 4, 3)}, others=True)({"image": big})["image"].shape == (
        1, 8, 12, 3,
    )  # fmt: skip
    with pytest.raises(InputError, match="expected"):
        observations({"image": big[..., :1]})
