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
