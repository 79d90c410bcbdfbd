"""Reads an Octo checkpoint's description of observations and actions, without JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from offline.errors import InputError, SpecError, did_you_mean
from offline.naming import match_names
from offline.spec import ActionSpec, Scale
from offline.types import Obs

MASKS = ("timestep_pad_mask", "pad_mask")  # before and since Octo 1.0
NOT_INPUTS = (*MASKS, "pad_mask_dict", "timestep", "task_completed")
SCALES: dict[str, Scale] = {"normal": "mean_std", "bounds": "p01_p99"}


class Observations:
    """Our observations under an Octo model's keys, in its shapes and units.

    A model's key takes what an option names (`proprio=eef_pos+gripper` concatenates), else our key
    of that name; else "proprio" takes all vectors in sorted key order, and "image_primary" takes
    "image" or the only camera. Keys that nothing feeds are left out, which Octo allows.
    """

    def __init__(
        self,
        example: Mapping[str, Any],
        *,
        keys: dict[str, str],
        proprio: Mapping[str, Any] | None,
        scale: Scale,
    ) -> None:
        """
        Args:
            example: the model's `example_batch["observation"]`, each (1, window, ...).
            keys: the model's key -> ours.
            proprio: statistics that "proprio" is normalised with, if the model has them.
            scale: "mean_std" or "p01_p99".
        """
        self.example, self._keys, self._proprio, self._scale = example, keys, proprio, scale

    def __call__(self, obs: Obs) -> dict[str, np.ndarray]:
        """One frame, each (B, ...).

        Raises:
            InputError: a key is missing, has another shape than the model's, or none fits.
        """
        arrays = {key: value.detach().cpu().numpy() for key, value in obs.items()}
        inputs = {}
        for key, example in self.example.items():
            if key in NOT_INPUTS or not (sources := self._sources(key, arrays)):
                continue
            shape = np.shape(example)[2:]
            value = np.concatenate([arrays[source] for source in sources], axis=-1)
            if len(shape) == 3 and value.ndim == 4:
                value = resize(value, shape[:2])
            if value.shape[1:] != shape:
                raise InputError(
                    f'the model\'s "{key}" has shape {shape}, {" + ".join(sources)} has '
                    f"{value.shape[1:]}: say which of {', '.join(arrays)} with "
                    f"octo:DIR?{key}=KEY+KEY"
                )
            if key == "proprio" and self._proprio is not None:
                value = normalize_proprio(value, self._proprio, self._scale)
            inputs[key] = value.astype(np.asarray(example).dtype)
        if not inputs:
            takes = [key for key in self.example if key not in NOT_INPUTS]
            raise InputError(
                f"the model observes {', '.join(takes)}, the environment {', '.join(arrays)}: say "
                f"which feeds which with octo:DIR?{takes[0] if takes else 'proprio'}=KEY"
            )
        return inputs

    def masks(self, keys: Any, real: np.ndarray) -> dict[str, Any]:
        """The padding masks that the model was trained with; `real` is (B, window) bool."""
        masks: dict[str, Any] = {key: real for key in MASKS if key in self.example}
        if isinstance(self.example.get("pad_mask_dict"), Mapping):
            masks["pad_mask_dict"] = {key: np.ones_like(real) for key in keys}
        return masks

    def _sources(self, key: str, obs: dict[str, np.ndarray]) -> list[str]:
        if key in self._keys:
            named = self._keys[key].split("+")
            for name in named:
                if name not in obs:
                    raise InputError(
                        f'the environment does not observe "{name}".{did_you_mean(name, obs)}'
                    )
            return named
        if key in obs:
            return [key]
        others = [name for name in obs if name not in self.example]
        if found := match_names([key], others, f"say which with octo:DIR?{key}=KEY"):
            return [found[key]]
        if key == "proprio":
            return sorted(name for name, x in obs.items() if x.ndim == 2 and name != "language")
        images = [name for name, value in obs.items() if value.ndim == 4]
        if key == "image_primary" and (len(images) == 1 or "image" in images):
            return ["image"] if "image" in images else images
        return []


def window_of(example: Mapping[str, Any]) -> int:
    """How many steps a model looks back, from its example observation.

    Raises:
        InputError: the example has no padding mask.
    """
    for key in MASKS:
        if key in example:
            return np.shape(example[key])[1]
    raise InputError(f"the model's example_batch has no {MASKS[0]}: was it saved by Octo?")


def normalization_of(config: Any) -> str:
    """ "normal" or "bounds", wherever a training configuration says so; "normal" otherwise."""
    if isinstance(config, Mapping):
        if (said := config.get("action_proprio_normalization_type")) is not None:
            return str(getattr(said, "value", said)).lower().rsplit(".", 1)[-1]
        for value in config.values():
            if (found := normalization_of(value)) != "normal":
                return found
    return "normal"


def choose_statistics(statistics: Any, name: str | None) -> dict[str, Any]:
    """The statistics {"action": ..., "proprio": ...} of one dataset.

    Raises:
        InputError: there are none, or several and `name` is none of them.
    """
    if not statistics:
        raise InputError("the checkpoint has no dataset_statistics.json: its units are unknown")
    if "action" in statistics:
        if name is not None:
            raise InputError(f'the checkpoint has statistics of one dataset only, not "{name}"')
        return statistics
    names = [key for key, value in statistics.items() if isinstance(value, Mapping)]
    if name is None and len(names) == 1:
        name = names[0]
    if name is None:
        raise InputError(
            f"the checkpoint has statistics of {len(names)} datasets: say which with "
            f"octo:DIR?dataset=NAME; it has {', '.join(names)}"
        )
    if name not in names:
        raise InputError(f'the checkpoint has no statistics "{name}".{did_you_mean(name, names)}')
    return statistics[name]


def make_spec(
    action: Mapping[str, Any],
    *,
    horizon: int,
    scale: Scale,
    env_spec: ActionSpec | None,
    action_chunk: int | None,
) -> ActionSpec:
    """The spec of a dataset's action statistics; bounds, names and gripper are the environment's.

    Args:
        action: "mean" and "std", perhaps "mask", "min", "max", "p01", "p99"; each (A,).
        horizon: actions that the model predicts at once.
        scale: "mean_std" or "p01_p99".
        env_spec: the environment's; the data's bounds are taken when None.
        action_chunk: actions to use of a proposal; all when None.

    Raises:
        SpecError: another number of dimensions than the environment's, or too long a chunk.
    """
    mean, std = (np.asarray(action[key], float) for key in ("mean", "std"))
    if env_spec is not None and env_spec.dim != len(mean):
        raise SpecError(
            f"the model's statistics have A={len(mean)} dimensions, the environment takes "
            f"A={env_spec.dim}: was it trained for another robot?"
        )
    chunk = action_chunk or horizon
    if chunk > horizon:
        raise SpecError(
            f"the model proposes chunks of H={horizon}, {chunk} were asked for: use "
            f"--action-chunk {horizon}"
        )
    p01 = np.asarray(action.get("p01", mean - 2.33 * std), float)  # of a normal distribution
    p99 = np.asarray(action.get("p99", mean + 2.33 * std), float)
    low, high = np.asarray(action.get("min", p01)), np.asarray(action.get("max", p99))
    if env_spec is not None:
        low, high = np.asarray(env_spec.low), np.asarray(env_spec.high)
    return ActionSpec(
        low=_floats(low),
        high=_floats(high),
        mean=_floats(mean),
        std=_floats(std),
        p01=_floats(p01),
        p99=_floats(p99),
        mask=tuple(bool(m) for m in np.asarray(action.get("mask", np.ones(len(mean))))),
        scale=scale,
        chunk=chunk,
        names=env_spec.names if env_spec else (),
        gripper=env_spec.gripper if env_spec else None,
        gripper_open=env_spec.gripper_open if env_spec else None,
    )


def constant_dimensions(spec: ActionSpec) -> np.ndarray:
    """(A,) whether the data never moved there: Octo then answers the data's value, whatever its
    head says, because it multiplies by a spread of 0."""
    std, p01, p99 = (np.asarray(x) for x in (spec.std, spec.p01, spec.p99))
    spread = std if spec.scale == "mean_std" else (p99 - p01) / 2
    return (spread < 1e-6) & np.asarray(spec.mask)


def normalize_proprio(value: np.ndarray, statistics: Mapping[str, Any], scale: Scale) -> np.ndarray:
    """Proprioception (B, D) as Octo's data pipeline gives it to a model."""
    stats = {key: np.asarray(entry) for key, entry in statistics.items()}
    mask = stats.get("mask", np.ones(value.shape[-1])).astype(bool)
    if scale == "mean_std":
        normal = (value - stats["mean"]) / (stats["std"] + 1e-8)
    else:
        normal = 2 * (value - stats["p01"]) / (stats["p99"] - stats["p01"] + 1e-8) - 1
        normal = np.clip(normal, -1, 1)
    return np.where(mask, normal, value)


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (B, height, width, 3) to another height and width (Lanczos, as Octo's data)."""
    if images.shape[1:3] == tuple(size):
        return images
    height, width = size
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
            for image in images
        ]
    )


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
