"""`ActorPolicy`: a tanh-Gaussian actor as a policy, and its file format.

    FOLDER/policy.safetensors   weights and observation statistics
    FOLDER/policy.json          kind, action spec, observation shapes, sizes, meta

Shape legend: B observations, n candidates, H action chunk, A action dimension, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from offline.documents import as_document
from offline.errors import InputError, shown
from offline.model_files import ModelDocument, Size, build, described, load_model, save_model
from offline.networks.encoder import ObsEncoder
from offline.networks.heads import TanhGaussian
from offline.networks.images import ImageEncoderName
from offline.networks.normalizer import check_obs
from offline.spec import ActionSpec
from offline.types import Obs

WEIGHTS, CONFIG, FORMAT = "policy.safetensors", "policy.json", "genpol policy 1"
KIND = "tanh-gaussian"


@dataclass(frozen=True)
class ActorSizes:
    """What a document says of an `ActorPolicy`'s networks."""

    __pydantic_config__ = {"extra": "forbid"}

    hidden: tuple[Size, ...]
    image_encoder: ImageEncoderName
    layer_norm: bool = True  # which older ones all have


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
        what = f"cannot read the policy in {folder}"
        said = as_document(document, ModelDocument, what)
        if said.kind != kind:
            raise InputError(f'{what}: it is "{shown(said.kind)}", not "{kind}"')
        sizes = as_document(said.architecture, ActorSizes, f'{what}: its "architecture"')

        def make() -> ActorPolicy:
            spec, hidden = said.action_spec(), sizes.hidden
            encoder = ObsEncoder(said.obs_shapes, sizes.image_encoder)
            return cls(
                spec,
                encoder,
                TanhGaussian(
                    encoder.dim,
                    spec.chunk * spec.dim,
                    hidden,
                    layer_norm=sizes.layer_norm,
                ),
                hidden,
                env=said.env,
                meta=said.meta,
                image_encoder=sizes.image_encoder,
            )

        policy = build(make, weights, folder / WEIGHTS, CONFIG, kind="policy")
        return policy.to(device).eval().requires_grad_(False)
