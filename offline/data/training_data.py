"""Reads a dataset for training: action spec, observations, and checks that they fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from offline.data.episodes import Episodes
from offline.errors import InputError, did_you_mean
from offline.naming import own_names
from offline.networks.normalizer import low_dim_keys
from offline.spec import ActionSpec, Scale

TOLERANCE = 1e-3  # how far outside its bounds an action is rounding, as a share of their width


def training_spec(episodes: Episodes, scale: Scale, chunk: int) -> ActionSpec:
    """The dataset's spec, scaled to [-1, 1] in every dimension and for chunks of H.

    Raises:
        InputError: scaled by bounds, and the dataset has none.
    """
    spec = dataclasses.replace(
        episodes.spec, scale=scale, mask=(True,) * episodes.spec.dim, chunk=chunk
    )
    if scale == "bounds" and not np.isfinite([*spec.low, *spec.high]).all():
        raise InputError(
            "the dataset does not say what bounds its actions have: pass --scale p01_p99"
        )
    return spec


def wanted_keys(
    episodes: Episodes, obs_keys: Sequence[str], image_keys: Sequence[str]
) -> list[str] | None:
    """The observations to read, by the dataset's names: those asked for, every vector beside
    images; None reads the default.

    Raises:
        InputError: the dataset has no such observation, several may be meant, or an image is none.
    """
    known = episodes.obs_shapes
    obs_keys = own_names(obs_keys, known, "the dataset")
    image_keys = own_names(image_keys, known, "the dataset")
    for key in image_keys:
        if len(known[key]) != 3:
            raise InputError(
                f'--image-keys: "{key}" is no image but has shape {tuple(known[key])}; vectors are '
                "named by --obs-keys"
            )
    if not obs_keys and not image_keys:
        return None
    flat = obs_keys or [key for key, shape in known.items() if len(shape) == 1]
    return sorted({*flat, *image_keys})


def check_dataset_fits(
    episodes: Episodes,
    env_name: str,
    obs_shapes: Mapping[str, tuple[int, ...]],
    action_spec: ActionSpec,
    obs_keys: Sequence[str] | None = None,
) -> None:
    """Check that a dataset can be learnt from for acting in an environment.

    Args:
        episodes: the dataset; none of its episodes are read.
        env_name: the environment's, such as "metaworld/push-v3".
        obs_shapes: of the environment's observations, per key.
        action_spec: the environment's; its bounds are compared where both have any.
        obs_keys: the observations to be used, see `wanted_keys`; default the dataset's vectors.

    Raises:
        InputError: it was recorded in another environment (other versions of one are let pass),
            an observation is missing or has another shape, or actions have other dimensions or
            bounds. Names the key or the dimension.
    """
    if episodes.env is not None and _unversioned(episodes.env) != _unversioned(env_name):
        raise InputError(
            f'the dataset was recorded in "{episodes.env}", this is "{env_name}": pass '
            f"--env {episodes.env}, or --data recorded here"
        )
    for key in low_dim_keys(episodes.obs_shapes) if obs_keys is None else obs_keys:
        here, there = obs_shapes.get(key), tuple(episodes.obs_shapes[key])
        if here is None:
            raise InputError(
                f'the dataset has the observation "{key}", "{env_name}" does not.'
                f"{did_you_mean(key, obs_shapes)} Choose those that both have with --obs-keys"
            )
        if tuple(here) != there:
            raise InputError(
                f'the observation "{key}" has shape {there} in the dataset, {tuple(here)} in '
                f'"{env_name}": was it recorded in another environment or at another image size?'
            )
    spec = episodes.spec
    if spec.dim != action_spec.dim:
        raise InputError(
            f'the dataset\'s actions have A={spec.dim}, "{env_name}" takes A={action_spec.dim}: '
            "was it recorded in another environment?"
        )
    if episodes.meta.get("spec_from") == "data":
        return  # these bounds are how far the actions went, not what they may be
    for i in range(spec.dim):
        ends = np.array([[s.low[i], s.high[i]] for s in (spec, action_spec)])
        room = TOLERANCE * (ends[1, 1] - ends[1, 0])
        if np.isfinite(ends).all() and not np.allclose(ends[0], ends[1], rtol=0, atol=room):
            raise InputError(
                f"{action_spec.describe(i)} of the actions is in [{spec.low[i]:g}, "
                f"{spec.high[i]:g}] in the dataset, in [{action_spec.low[i]:g}, "
                f'{action_spec.high[i]:g}] in "{env_name}": are the dataset\'s actions normalised?'
            )


def check_actions(
    episodes: Episodes, spec: ActionSpec, indices: Sequence[int] | np.ndarray | None = None
) -> None:
    """Check that a dataset's actions lie within bounds; reads every episode once.

    What is outside by up to a thousandth of a dimension's width is rounding. Dimensions without
    bounds are let pass.

    Args:
        episodes: the dataset.
        spec: whose `low` and `high`; the environment's, or the dataset's own.
        indices: only these episodes.

    Raises:
        InputError: how many lie outside, and the first of them; or an episode is faulty.
    """
    low, high = np.asarray(spec.low), np.asarray(spec.high)
    room = np.nan_to_num(TOLERANCE * (high - low), posinf=0.0)
    total = outside = 0
    first = ""
    for index in range(len(episodes)) if indices is None else indices:
        episode = episodes[int(index)]
        episode.check(f"episode {index}")
        episode.require_like(f"episode {index}", {}, spec.dim)
        wrong = (episode.actions < low - room) | (episode.actions > high + room)  # (T, A)
        total, outside = total + len(wrong), outside + int(wrong.any(1).sum())
        if wrong.any() and not first:
            step, i = (int(number) for number in np.argwhere(wrong)[0])
            first = (
                f"in episode {index}, step {step}, {spec.describe(i)}: "
                f"{episode.actions[step, i]:g} is not in [{low[i]:g}, {high[i]:g}]"
            )
    if outside:
        raise InputError(
            f"{outside} of {total} actions lie outside their bounds, first {first}; the "
            "environment would clip them: was the dataset recorded with other bounds, or scaled?"
        )


def _unversioned(name: str) -> str:
    return re.sub(r"-v\d+$", "", name)
