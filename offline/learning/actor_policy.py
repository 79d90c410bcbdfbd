"""`ActorPolicy`: a tanh-Gaussian actor as a policy, and its file format.

    FOLDER/policy.safetensors   weights and observation statistics
    FOLDER/policy.json          kind, action spec, observation shapes, sizes, meta

Shape legend: B observations, n candidates, H action chunk, A action dimension, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from offline.errors import InputError
from offline.model_files import described, fill, load_model, save_model
from offline.networks.encoder import ObsEncoder
from offline.networks.heads import TanhGaussian
from offline.networks.normalizer import check_obs
from offline.spec import ActionSpec
from offline.types import Obs

WEIGHTS, CONFIG, FORMAT = "policy.safetensors", "policy.json", "genpol policy 1"
KIND = "tanh-gaussian"


class ActorPolicy(nn.Module):
    """tanh(Normal(mean, std)) over action chunks: an `offline.types.Policy` without history.

    It shares the networks that it is given, so it follows them while they learn.

    Args:
        spec: of the actions, with `spec.chunk` = H.
        encoder: observations to features (B, F); perhaps the critic's.
        actor: features to flat chunks.
        hidden: units of the actor's hidden layers, to make it again.
        greedy: `sample` returns the mode too.
        env: the environment trained for.
        meta: whatever else should be saved, as JSON.
        image_encoder: network for image observations in `encoder`.
    """

    def __init__(
        self,
        spec: ActionSpec,
        encoder: ObsEncoder,
        actor: TanhGaussian,
        hidden: tuple[int, ...],
        *,
        greedy: bool = False,
        env: str | None = None,
        meta: Mapping[str, Any] | None = None,
        image_encoder: str = "small",
    ) -> None:
        super().__init__()
        self.spec, self.encoder, self.actor, self.greedy = spec, encoder, actor, greedy
        self.env, self.meta = env, dict(meta or {})
        self.obs_shapes = {key: tuple(shape) for key, shape in encoder.obs_shapes.items()}
        self.architecture = {
            "hidden": list(hidden),
            "image_encoder": image_encoder,
            "layer_norm": actor.layer_norm,
        }
        self.kind = KIND

    # -- Policy

    def reset(self) -> None:
        """Nothing to forget."""

    def commit(self, act: Tensor) -> None:
        """Nothing to remember."""

    def keep(self, rows: Tensor) -> None:
        """Nothing to drop."""

    @torch.no_grad()
    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """Propose n chunks for each row: (B, n, H, A), normalised by `spec`; no gradients.

        Raises:
            SpecError: a key is missing or has another shape than in training.
            InputError: n < 1.
        """
        if n < 1:
            raise InputError(f"expected at least 1 candidate, received n={n}")
        if self.greedy:
            return self.mode(obs)[:, None].repeat(1, n, 1, 1)
        act, _ = self.actor.sample(self._encode(obs), n, generator)
        return act.unflatten(-1, (self.spec.chunk, self.spec.dim))

    @torch.no_grad()
    def mode(self, obs: Obs, generator: Generator | None = None) -> Tensor:
        """tanh(mean): (B, H, A), the same every time.

        Raises:
            SpecError: a key is missing or has another shape than in training.
        """
        mean, _ = self.actor(self._encode(obs))
        return torch.tanh(mean).unflatten(-1, (self.spec.chunk, self.spec.dim))

    def _encode(self, obs: Obs) -> Tensor:
        check_obs(obs, self.obs_shapes, who="the policy")
        return self.encoder(obs)

    # -- files

    def save(self, folder: str | Path, *, kind: str = KIND) -> Path:
        """Write both files, the old ones or the new; `kind` says what its chunks mean."""
        document = described(self, self.architecture, format=FORMAT, kind=kind)
        return save_model(folder, WEIGHTS, self, CONFIG, document)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu", kind: str = KIND) -> ActorPolicy:
        """Read what `save` wrote. Nothing is unpickled; in eval mode, without gradients.

        Raises:
            InputError: a file is missing or torn, or holds another kind of policy.
        """
        folder = Path(folder)
        document, weights = load_model(folder, WEIGHTS, CONFIG, kind="policy", form=FORMAT)
        try:
            if document.get("kind") != kind:
                raise ValueError(f"it is {document.get('kind')!r}, not {kind!r}")
            sizes = document["architecture"]
            spec, hidden = ActionSpec.from_dict(document["spec"]), tuple(sizes["hidden"])
            shapes = {key: tuple(shape) for key, shape in document["obs_shapes"].items()}
            encoder = ObsEncoder(shapes, sizes["image_encoder"])
            policy = cls(
                spec,
                encoder,
                TanhGaussian(
                    encoder.dim,
                    spec.chunk * spec.dim,
                    hidden,
                    layer_norm=sizes.get("layer_norm", True),  # which older ones all have
                ),
                hidden,
                env=document["env"],
                meta=document["meta"],
                image_encoder=sizes["image_encoder"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot read the policy in {folder}: {error}") from error
        fill(policy, weights, folder / WEIGHTS, CONFIG)
        return policy.to(device).eval().requires_grad_(False)
