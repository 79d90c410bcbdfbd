"""LeRobot policies by duck type: `lerobot:DIR`.

A policy has `predict_action_chunk(batch)`, `reset()` and `config`; K proposals are one call on a
tiled batch. `select_action` is never called: it hands out the actions of an old chunk. Since
LeRobot 0.4 actions are un-normalised by a post-processor beside the policy, before that by the
policy itself; either way they arrive here in the environment's units.

Options after `?`: `model=package.module:Class` takes a class with `from_pretrained(DIR)` instead
of LeRobot's own (its instances may carry `preprocess` and `postprocess`); every other option says
which of our observation keys feeds one of theirs, such as `observation.images.top=image`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from offline.draws import globally_seeded
from offline.errors import InputError, SpecError, did_you_mean
from offline.spec import ActionSpec
from offline.types import Obs
from robots.importing import import_object, one_line
from robots.policies.history import History
from robots.policies.lerobot_format import IMAGES, full_key, rename, spec_of_statistics, tile

Batch = dict[str, Any]
INSTALL = (
    "LeRobot is not installed: pip install lerobot, or name a class with its interface: "
    "lerobot:DIR?model=package.module:Class"
)


class LeRobotPolicy:
    """A LeRobot policy behind `offline.types.Policy`."""

    def __init__(
        self,
        policy: Any,
        *,
        env_spec: ActionSpec | None,
        action_chunk: int | None = None,
        language: str | None = None,
        preprocess: Callable[[Batch], Batch] | None = None,
        postprocess: Callable[[Tensor], Tensor] | None = None,
        keys: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            policy: has `predict_action_chunk`, `reset` and `config`.
            env_spec: the environment's actions; from the post-processor's statistics when None.
            action_chunk: actions of a proposal to use; its `n_action_steps` when None.
            language: the instruction ("task" in a batch).
            preprocess: batch -> batch as the network takes it (LeRobot >= 0.4).
            postprocess: (B, H, A) from the network -> the environment's units.
            keys: LeRobot's observation key -> ours.

        Raises:
            InputError: it cannot propose chunks, or its actions do not fit the environment.
        """
        if not callable(getattr(policy, "predict_action_chunk", None)):
            raise InputError(
                f"{type(policy).__name__} has no predict_action_chunk: LeRobot >= 0.3 has it"
            )
        self.policy, self.language = policy, language or ""
        self._preprocess, self._postprocess = preprocess, postprocess
        self._keys = keys or {}
        config = getattr(policy, "config", None)
        self._expected = list(getattr(config, "input_features", None) or {})
        for key in self._keys:
            if self._expected and key not in self._expected:
                raise InputError(
                    f'the policy takes no observation "{key}".{did_you_mean(key, self._expected)}'
                )
        chunk = action_chunk or getattr(config, "n_action_steps", None) or 1
        spec = env_spec or spec_of_statistics(postprocess)
        feature = (getattr(config, "output_features", None) or {}).get("action")
        if feature is not None and feature.shape[0] != spec.dim:
            raise SpecError(
                f"the policy's actions have A={feature.shape[0]}, the environment takes "
                f"A={spec.dim}: was it trained for another robot?"
            )
        self.spec = spec.with_chunk(int(chunk))
        self._history = History(int(getattr(config, "n_obs_steps", None) or 1))
        if hasattr(policy, "eval"):
            policy.eval()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        env_spec: ActionSpec | None,
        action_chunk: int | None = None,
        language: str | None = None,
        options: dict[str, str] | None = None,
        device: str | None = None,
    ) -> LeRobotPolicy:
        """The policy in a folder that LeRobot wrote (config.json, model.safetensors, ...).

        Raises:
            InputError: LeRobot is missing, the folder is none of its own, or it does not fit.
        """
        keys = dict(options or {})
        model = keys.pop("model", None)
        try:
            if model is None:
                policy, preprocess, postprocess = _load_with_lerobot(str(folder), device)
            else:
                policy = import_object(model, what="a LeRobot policy").from_pretrained(str(folder))
                preprocess = getattr(policy, "preprocess", None)
                postprocess = getattr(policy, "postprocess", None)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"lerobot:{folder} does not load: {one_line(error)}; is it a LeRobot checkpoint "
                "of the installed version?"
            ) from error
        return cls(
            policy,
            env_spec=env_spec,
            action_chunk=action_chunk,
            language=language,
            preprocess=preprocess,
            postprocess=postprocess,
            keys={full_key(key): value for key, value in keys.items()},
        )

    def reset(self) -> None:
        """New episodes in every row."""
        self._history.reset()
        self.policy.reset()

    def commit(self, act: Tensor) -> None:
        """act (B, H', A) is being executed."""
        self._history.commit(act.shape[1])

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self._history.keep(rows)

    @torch.no_grad()
    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """Propose n chunks for each row: (B, n, H, A), normalised by `spec`.

        Raises:
            InputError: an observation is missing, or the output has a wrong shape or is not finite.
        """
        rows = len(next(iter(obs.values())))
        frames, _ = self._history.frames(obs)
        batches = [self._batch(frame, rows, n) for frame in frames]
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        with globally_seeded(seed):  # LeRobot draws from torch's global generator
            act = self._predict(batches)
        chunk, dim = self.spec.chunk, self.spec.dim
        if act.ndim != 3 or act.shape[0] != rows * n or act.shape[2] != dim:
            raise InputError(
                f"predict_action_chunk returned shape {tuple(act.shape)}, expected "
                f"(B={rows * n}, H, A={dim})"
            )
        if act.shape[1] < chunk:
            raise InputError(
                f"predict_action_chunk returned {act.shape[1]} actions, expected chunks of "
                f"{chunk}: use --action-chunk {act.shape[1]}"
            )
        raw = self._in_env_units(act[:, :chunk].unflatten(0, (rows, n)))
        if not torch.isfinite(raw).all():
            raise InputError("the LeRobot policy gave NaN or infinite actions")
        return self.spec.normalize(raw)

    def _in_env_units(self, act: Tensor) -> Tensor:
        """(B, n, H, A) as predicted -> float32 in the environment's units.

        One call for each k, with B rows, because a post-processor may remember the B states that
        the pre-processor saw (actions relative to the state).
        """
        if self._postprocess is not None:
            act = torch.stack([self._postprocess(act[:, k]) for k in range(act.shape[1])], dim=1)
        return act.detach().float().cpu()

    def _predict(self, frames: list[Batch]) -> Tensor:
        """Batches of B * n rows, oldest first -> (B * n, H, A)."""
        queues = getattr(self.policy, "_queues", None) or {}
        observed = [key for key in queues if key != "action"]
        if not observed:
            return self.policy.predict_action_chunk(frames[-1])
        # These policies stack what their queues hold, so the queues are filled with the tiled
        # history, and emptied so that nothing of it is left for the next decision.
        self.policy.reset()
        queues = self.policy._queues
        latest = frames[-1]
        for frame in frames:
            if self._preprocess is None and hasattr(self.policy, "normalize_inputs"):
                frame = self.policy.normalize_inputs(frame)  # LeRobot < 0.4: select_action did it
            latest = dict(frame)
            for key in observed:
                latest[key] = self._queued(latest, key)
                queues[key].append(latest[key])
        act = self.policy.predict_action_chunk(latest)
        self.policy.reset()
        return act

    def _queued(self, batch: Batch, key: str) -> Tensor:
        if key in batch:
            return batch[key]
        images = [batch[name] for name in self.policy.config.image_features]
        return torch.stack(images, dim=-4) if key == IMAGES else images[0]

    def _batch(self, obs: Obs, rows: int, n: int) -> Batch:
        """One frame as LeRobot's batch, pre-processed, each row n times in a row."""
        batch: Batch = rename(obs, self._expected, self._keys)
        batch["task"] = [self.language] * rows
        if self._preprocess is not None:
            batch = self._preprocess(batch)
        else:
            parameters = getattr(self.policy, "parameters", None)
            first = next(iter(parameters()), None) if parameters else None
            if first is not None:
                batch = {k: v.to(first.device) if k != "task" else v for k, v in batch.items()}
        # Their processors add "action": None, which policies with queues would look up.
        return {key: tile(value, rows, n) for key, value in batch.items() if key != "action"}


def _load_with_lerobot(folder: str, device: str | None = None) -> tuple[Any, Any, Any]:
    """(policy, preprocess, postprocess), the processors None before LeRobot 0.4."""
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies import factory
    except ImportError as error:
        raise InputError(f"{INSTALL} ({one_line(error)})") from error
    config = PreTrainedConfig.from_pretrained(folder)
    config.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    policy = factory.get_policy_class(config.type).from_pretrained(folder, config=config)
    if not hasattr(factory, "make_pre_post_processors"):
        return policy, None, None
    overrides = {"device_processor": {"device": str(config.device)}}
    preprocess, postprocess = factory.make_pre_post_processors(
        config, pretrained_path=folder, preprocessor_overrides=overrides
    )
    return policy, preprocess, postprocess
