"""robomimic's checkpoints as policies. The only file that imports robomimic."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Generator, Tensor

from offline.documents import read_document
from offline.errors import InputError
from offline.spec import ActionSpec
from offline.types import Obs
from robots.policies.robomimic_checkpoint import (
    action_affine,
    fitting_spec,
    in_one_line,
    read_checkpoint,
)
from robots.policies.robomimic_nets import (
    Memory,
    drawing_from,
    evaluating,
    is_implicit,
    is_trajectory,
    propose,
)

MODULES = ("algo", "config", "envs.env_base", "utils.file_utils", "utils.train_utils")
SUPPORTED = (
    "bc (deterministic, Gaussian, GMM, VAE, RNN, RNN-GMM, transformer, transformer-GMM) and "
    "diffusion_policy"
)
MODE_DRAWS = 32  # proposals whose medoid stands for the mode where none can be decoded


class _StandIn(types.ModuleType):
    """A part of torchvision, which robomimic imports but calls for images only."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError(
            f"robomimic's image networks need torchvision ({self.__name__}.{name}), which is not "
            "installed: pip install torchvision"
        )


def import_robomimic() -> Any:
    """The package robomimic with `MODULES` imported.

    Where torchvision is missing, a stand-in takes its place for the length of the import and is
    then removed, so that no other library mistakes it for the real one.

    Raises:
        InputError: robomimic or something it needs is not installed.
    """
    try:
        robomimic = importlib.import_module("robomimic")
        if Path(robomimic.__path__[0], "algo", "diffusion_policy.py").exists():
            # Later versions import these, which must look for torchvision before the stand-in.
            for name in ("diffusers", "transformers", "peft"):
                if importlib.util.find_spec(name):
                    importlib.import_module(name)
        # robomimic prints a banner about a file of settings that nobody needs.
        with _torchvision_or_stand_in(), contextlib.redirect_stdout(io.StringIO()):
            for name in MODULES:
                importlib.import_module(f"robomimic.{name}")
        return robomimic
    except ImportError as error:
        raise InputError(
            f'expected robomimic to be installed ({error}): pip install "genpol[robomimic]"'
        ) from error


@contextlib.contextmanager
def _torchvision_or_stand_in() -> Iterator[None]:
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision"):
        yield
        return
    stand_ins: list[Any] = [
        _StandIn(f"torchvision{part}")
        for part in ("", ".transforms", ".transforms.functional", ".models")
    ]
    top, transforms, functional, models = stand_ins
    top.transforms, top.models, transforms.functional = transforms, models, functional
    transforms.Lambda = transforms.Compose = None
    sys.modules.update({module.__name__: module for module in stand_ins})
    try:
        yield
    finally:
        for module in stand_ins:
            sys.modules.pop(module.__name__, None)


@dataclass(frozen=True)
class Sidecar:
    """What may lie beside a checkpoint, as JSON."""

    action_chunk: Annotated[int, Ge(1)] | None = None
    action_spec: dict[str, Any] | None = None


class RobomimicPolicy:
    """A robomimic policy that proposes n action chunks for each of B episodes.

    `sample` draws with `low_noise_eval` off, because proposals that are all alike cannot be
    ranked; `mode` decodes with it on. With the same seed, n=1 and B=1, each gives the action of
    robomimic's own `RolloutPolicy` with the flag set that way: the generator takes the place of
    torch's global one. The state advances by one observation per decision.

    Observations are the environment's: images uint8 (B, height, width, 3). Where frames are
    stacked, the policy remembers those of its decisions; (B, T, ...), from an environment that
    stacks every step's frames itself, is taken as it is.
    """

    def __init__(
        self,
        rollout_policy: Any,
        *,
        env_spec: ActionSpec | None = None,
        action_chunk: int | None = None,
        action_stats: dict[str, Any] | None = None,
        env: str | None = None,
    ) -> None:
        """Wrap robomimic's `RolloutPolicy`, which is not altered.

        Args:
            rollout_policy: holds the algorithm and its normalisation statistics.
            env_spec: the environment's actions; without it they are taken to fill [-1, 1], or
                the range of the action statistics.
            action_chunk: H, of a policy trained on H actions flattened into one; inferred from
                `env_spec` when None.
            action_stats: {action key: {"offset", "scale"}} with which later versions of robomimic
                normalise actions; those of `rollout_policy`, if any, when None.
            env: name of the environment it was trained on, where known.

        Raises:
            InputError: an algorithm that proposes no actions or wants goals.
            SpecError: actions that do not fit `env_spec` and `action_chunk`.
        """
        algo = rollout_policy.policy
        if not is_trajectory(algo) and "policy" not in algo.nets:
            raise InputError(
                f"expected a robomimic policy that proposes actions, received "
                f"{type(algo).__name__}; supported: {SUPPORTED}"
            )
        if getattr(algo, "goal_shapes", None):
            raise InputError(
                f"this robomimic policy wants goals ({', '.join(algo.goal_shapes)}), which "
                "steering does not provide: use one trained without goals"
            )
        self.algo, self.env = algo, env
        self._obs_utils = import_robomimic().utils.obs_utils
        self._modalities = {
            key: name for name, keys in algo.obs_config.modalities.obs.items() for key in keys
        }
        self.obs_shapes = {
            key: tuple(shape[1:]) + (shape[0],) if len(shape) == 3 else tuple(shape)
            for key, shape in algo.obs_shapes.items()
        }
        self._obs_stats = rollout_policy.obs_normalization_stats
        stats = action_stats or getattr(rollout_policy, "action_normalization_stats", None)
        self._offset, self._scale = action_affine(algo, stats)
        horizon = int(algo.algo_config.horizon.action_horizon) if is_trajectory(algo) else None
        self.spec = fitting_spec(self._offset, self._scale, env_spec, action_chunk, horizon)
        self._stride = 1 if horizon else self.spec.chunk  # steps between training observations
        self.reset()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        trust: bool,
        env_spec: ActionSpec | None = None,
        action_chunk: int | None = None,
        device: str = "cpu",
    ) -> RobomimicPolicy:
        """Load a robomimic checkpoint, such as model.pth. What it proposes lies on the CPU.

        Beside it may lie model.json with "action_chunk" and "action_spec", which stand in for
        arguments that are None.

        `trust` says that the file may run code while it is loaded.

        Raises:
            InputError: the file is missing, not trusted, or not a checkpoint that the installed
                robomimic can load; see also `__init__`.
        """
        path = Path(os.path.expanduser(path))
        if not path.is_file():
            raise InputError(f"expected a robomimic checkpoint, there is no file {path}")
        if not trust:
            raise InputError(
                f"{path} is a pickle, and a pickle can run any code while it is loaded: pass "
                "--trust if you trust whoever made it"
            )
        robomimic = import_robomimic()
        saved = read_checkpoint(path)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it tells of every observation
                rollout_policy, _ = robomimic.utils.file_utils.policy_from_checkpoint(
                    device=torch.device(device), ckpt_dict=saved
                )
        except InputError:
            raise
        except Exception as error:  # robomimic raises bare Exception and asserts
            raise InputError(
                f"robomimic {robomimic.__version__} cannot load {path} "
                f"({in_one_line(error)}): was it made by another version?"
            ) from error
        sidecar = path.with_suffix(".json")
        beside = read_document(sidecar, Sidecar) if sidecar.is_file() else Sidecar()
        if env_spec is None and beside.action_spec:
            env_spec = ActionSpec.from_dict(beside.action_spec, f'"{sidecar}"')
        return cls(
            rollout_policy,
            env_spec=env_spec,
            action_chunk=action_chunk or beside.action_chunk,
            action_stats=saved.get("action_normalization_stats"),
            env=(saved.get("env_metadata") or {}).get("env_name"),
        )

    def reset(self) -> None:
        """New episodes in every row."""
        self._memory = Memory()
        self._next: Memory | None = None

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """n proposals from the present state, low-noise decoding off: (B, n, H, A)."""
        return self._in_spec_units(self._propose(obs, n, generator, low_noise=False))

    def mode(self, obs: Obs, generator: Generator | None) -> Tensor:
        """Low-noise decoding: (B, H, A).

        The mean of a Gaussian; of a mixture, one component's mean (the component is drawn, as
        robomimic does); of a VAE or a diffusion policy, which have neither, the medoid of 32 draws.
        """
        if not is_implicit(self.algo):
            return self._in_spec_units(self._propose(obs, 1, generator, low_noise=True))[:, 0]
        draws = self._in_spec_units(self._propose(obs, MODE_DRAWS, generator, low_noise=True))
        flat = draws.flatten(2)
        return draws[torch.arange(len(draws)), torch.cdist(flat, flat).mean(-1).argmin(-1)]

    def commit(self, act: Tensor) -> None:
        """Advance by the observation last proposed for.

        Of `act` (B, H', A) only H' matters: stacked frames are as far apart as in training only
        if that many actions were executed, else stacking starts anew, as in a new episode. (Frames
        further apart would read as a speed several times too high.)
        """
        if self._next is not None:
            apart = act.shape[1] == self._stride
            self._memory = self._next if apart else replace(self._next, frames=None)
            self._next = None

    def keep(self, rows: Tensor) -> None:
        """Only these rows (R,) go on."""
        self._memory = self._memory.keep(rows)
        if self._next is not None:
            self._next = self._next.keep(rows)

    @torch.no_grad()
    def _propose(self, obs: Obs, n: int, generator: Generator | None, low_noise: bool) -> Tensor:
        """(B, n, T, D) in the network's units."""
        inputs = {key: self._input(key, obs) for key in self.obs_shapes}
        with evaluating(self.algo.nets), drawing_from(generator, self.algo.device):
            act, self._next = propose(self.algo, inputs, n, self._memory, low_noise=low_noise)
        return act.float().cpu()

    def _input(self, key: str, obs: Obs) -> Tensor:
        """One observation as the network takes it: processed, normalised, on its device."""
        shape = self.obs_shapes[key]
        if key not in obs:
            raise InputError(
                f'the robomimic policy was trained on "{key}", the environment gives '
                f"{', '.join(obs) or 'nothing'}: is it another task?"
            )
        value = obs[key]
        if value.ndim < len(shape) + 1 or tuple(value.shape[-len(shape) :]) != shape:
            raise InputError(
                f'the robomimic policy was trained on "{key}" of shape {shape}, received '
                f"{tuple(value.shape[1:])}: is it another task?"
            )
        # A copy, because robomimic scales pixels in place.
        value = self._obs_utils.process_obs(value.clone(), obs_modality=self._modalities[key])
        value = value.float().to(self.algo.device)
        if self._obs_stats is None:
            return value
        mean, std = (torch.as_tensor(np.asarray(self._obs_stats[key][s])) for s in ("mean", "std"))
        return (value - mean.to(value)) / std.to(value)

    def _in_spec_units(self, act: Tensor) -> Tensor:
        """(B, n, T, D) of the network, D flattened where chunked -> (B, n, H, A) by `spec`."""
        raw = act * torch.from_numpy(self._scale) + torch.from_numpy(self._offset)
        return self.spec.normalize(raw.unflatten(-1, (-1, self.spec.dim)).flatten(2, 3))
