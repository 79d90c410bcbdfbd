"""`ChunkPolicy`: our own expressive policies, an observation encoder and a generative head.

    FOLDER/policy.safetensors   weights (the average over training) and observation statistics
    FOLDER/policy.json          kind, action spec, observation shapes, sizes, meta

Shape legend: B observations, n candidates, H action chunk, A action dimension, D = H * A,
F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Generator, Tensor, nn

from genpol.policies.architecture import Architecture
from genpol.policies.diffusion import DiffusionHead
from genpol.policies.flow import FlowHead
from genpol.policies.gaussian import GaussianHead
from genpol.policies.one_step import StudentHead
from genpol.policies.precision import applied_in
from offline.documents import as_document
from offline.errors import InputError, SpecError, did_you_mean
from offline.model_files import ModelDocument, build, described, load_model, save_model
from offline.networks.encoder import ObsEncoder
from offline.networks.linear import Linear
from offline.networks.normalizer import ObsStats, check_obs
from offline.spec import ActionSpec
from offline.types import Obs

Kind = Literal["diffusion", "flow", "gaussian", "student"]
HEADS = {
    "diffusion": DiffusionHead,
    "flow": FlowHead,
    "gaussian": GaussianHead,
    "student": StudentHead,
}
MAX_GRAD_NORM = 1.0  # in training, by cloning and by imitation
WEIGHTS, CONFIG, FORMAT = "policy.safetensors", "policy.json", "genpol policy 1"


class ChunkPolicy(nn.Module):
    """A policy over action chunks: an `offline.types.Policy` that can be trained (`loss`).

    The observation is encoded once per call, however many candidates are drawn. It keeps no
    history, so `reset`, `commit` and `keep` have nothing to do.

    Args:
        kind: of the head.
        spec: of the actions, with `spec.chunk` = H.
        obs_shapes: of each observation key needed; "language" (D,) when it takes instructions.
        env: the environment trained for.
        meta: whatever else should be saved, as JSON.
        architecture: sizes.

    Raises:
        InputError: unknown kind.
    """

    def __init__(
        self,
        kind: Kind,
        spec: ActionSpec,
        obs_shapes: Mapping[str, tuple[int, ...]],
        *,
        env: str | None = None,
        meta: Mapping[str, Any] | None = None,
        architecture: Architecture | None = None,
    ) -> None:
        super().__init__()
        if kind not in HEADS:
            raise InputError(f'unknown kind of policy "{kind}".{did_you_mean(str(kind), HEADS)}')
        self.kind, self.spec, self.env, self.meta = kind, spec, env, dict(meta or {})
        self.obs_shapes = {key: tuple(shape) for key, shape in obs_shapes.items()}
        self.architecture = architecture or Architecture()
        self.bounded = spec.scale in ("bounds", "p01_p99") and all(spec.mask)
        """Whether normalised actions lie in [-1, 1]: they are then clipped to it."""
        self.encoder = ObsEncoder(self.obs_shapes, self.architecture.image_encoder)
        layers: list[nn.Module] = []
        size, features = self.encoder.dim, self.architecture.features
        raw = kind in ("diffusion", "flow") and self.architecture.network == "residual"
        for _ in range(0 if raw else self.architecture.encoder_layers):
            layers += [Linear(size, features), nn.LayerNorm(features), nn.SiLU()]
            size = features
        self.body = nn.Sequential(*layers)
        self.head: Any = HEADS[kind](spec.chunk * spec.dim, size, self.architecture, self.bounded)

    # -- Policy

    def reset(self) -> None:
        """Nothing to forget."""

    def commit(self, act: Tensor) -> None:
        """Nothing to remember."""

    def keep(self, rows: Tensor) -> None:
        """Nothing to drop."""

    def sample(
        self,
        obs: Obs,
        n: int,
        generator: Generator | None,
        dtype: torch.dtype = torch.float32,
        steps: int | None = None,
    ) -> Tensor:
        """Propose n chunks for each row: (B, n, H, A), normalised by `spec`; no gradients.

        Args:
            obs: B observations.
            n: proposals for each.
            generator: draws the noise.
            dtype: of the chain's large products, see `genpol.policies.precision`. Noise, actions
                and everything else are float32.
            steps: of the chain; default all.

        Raises:
            SpecError: a key is missing or has another shape than in training.
            InputError: n < 1; steps that the chain cannot be taken in, or no chain at all.
        """
        if n < 1:
            raise InputError(f"expected at least 1 candidate, received n={n}")
        with torch.inference_mode():
            short = self._in(steps)
            x = self.head.sample(self.encode(obs), n, generator, applied_in(dtype), **short)
        # The copy, made outside, is a plain tensor that autograd can use.
        return x.unflatten(-1, (self.spec.chunk, self.spec.dim)).clone()

    @torch.no_grad()
    def follow(self, policy: ChunkPolicy, step: int, ema: float) -> None:
        """Be the moving average of a policy in training, after its gradient step number `step`.

        Early on it follows quickly, so that it does not hold on to initial weights:
        average <- d average + (1 - d) weights,  d = min(ema, (1 + step) / (10 + step)).

        Args:
            policy: of the same architecture.
            step: from 0 on.
            ema: the decay d that it comes to.
        """
        decay = min(ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.parameters()), list(policy.parameters()), 1 - decay)

    def mode(self, obs: Obs, generator: Generator | None = None) -> Tensor:
        """Low-noise decoding: (B, H, A), the same every time. See each head for what it is.

        Raises:
            SpecError: a key is missing or has another shape than in training.
        """
        with torch.inference_mode():
            x = self.head.mode(self.encode(obs))
        return x.unflatten(-1, (self.spec.chunk, self.spec.dim)).clone()

    has_decode = True
    """`decode` is there: noise determines the action, so that noise can be searched or learnt."""

    def decode(
        self,
        obs: Obs,
        noise: Tensor,
        dtype: torch.dtype = torch.float32,
        steps: int | None = None,
    ) -> Tensor:
        """Chunks that standard normal `noise` (B, n, D) becomes: (B, n, H, A); no gradients.

        A flow integrates from it with Euler steps, a diffusion policy denoises it with DDIM
        whatever its sampler, a Gaussian returns mean + std * noise. `dtype` and `steps` are as in
        `sample`.

        Raises:
            SpecError: noise of another shape; a key of `obs` missing or of another shape.
        """
        dim = self.spec.chunk * self.spec.dim
        if noise.ndim != 3 or noise.shape[-1] != dim:
            raise SpecError(
                f"expected noise (B, n, H * A = {dim}), received {tuple(noise.shape)}: was it "
                "drawn for another --action-chunk?"
            )
        with torch.inference_mode():
            x = self.head.decode(self.encode(obs), noise, applied_in(dtype), **self._in(steps))
        return x.unflatten(-1, (self.spec.chunk, self.spec.dim)).clone()

    def _in(self, steps: int | None) -> dict[str, int]:
        """What to tell the head about steps."""
        if steps is None:
            return {}
        if self.kind not in ("diffusion", "flow") or steps < 1:
            raise InputError(f"a {self.kind} policy cannot be sampled in {steps} steps")
        return {"steps": steps}

    # -- training

    def encode(self, obs: Obs) -> Tensor:
        """Features of each observation: (B, F)."""
        check_obs(obs, self.obs_shapes, who="the policy")
        return self.body(self.encoder(obs))

    def loss(self, obs: Obs, act: Tensor, generator: Generator | None) -> Tensor:
        """(B,) of each row's chunk `act` (B, H, A), normalised by `spec`; with gradients.

        Raises:
            SpecError: another chunk length or action dimension, or a key missing.
        """
        if tuple(act.shape[1:]) != (self.spec.chunk, self.spec.dim):
            raise SpecError(
                f"the policy learns chunks (B, {self.spec.chunk}, {self.spec.dim}), received "
                f"{tuple(act.shape)}: was it made with another --action-chunk?"
            )
        x = act.flatten(1).clamp(-1, 1) if self.bounded else act.flatten(1)
        return self.head.loss(self.encode(obs), x, generator)

    def restandardise(self, stats: ObsStats) -> None:
        """Standardise observations by other statistics and stay the function that it is."""
        # Of a residual network, which has no encoder of its own, the observation's part.
        first = self.body[0] if len(self.body) else self.head.conditioner.obs_in
        self.encoder.normalizer.refit(stats).absorb(first.weight, first.bias)

    # -- files

    def save(self, folder: str | Path) -> Path:
        """Write both files; the folder holds the old policy or the new one, whatever happens."""
        document = described(self, self.architecture.to_dict(), format=FORMAT, kind=self.kind)
        return save_model(folder, WEIGHTS, self, CONFIG, document)


def load_policy(folder: str | Path, *, device: str = "cpu") -> ChunkPolicy:
    """Read what `ChunkPolicy.save` wrote, from its folder or from that of a `genpol clone` run.

    Nothing is unpickled. The result is in eval mode and needs no gradients.

    Raises:
        InputError: no such folder, something else in it, or a torn file.
    """
    folder = _find(Path(folder))
    document, weights = load_model(folder, WEIGHTS, CONFIG, kind="policy", form=FORMAT)
    what = f"cannot read the policy in {folder}"
    said = as_document(document, ModelDocument, what)

    def make() -> ChunkPolicy:
        return ChunkPolicy(
            cast(Kind, said.kind),
            said.action_spec(),
            said.obs_shapes,
            env=said.env,
            meta=said.meta,
            architecture=as_document(said.architecture, Architecture, 'its "architecture"'),
        )

    policy = build(make, weights, folder / WEIGHTS, CONFIG, kind="policy")
    return policy.to(device).eval().requires_grad_(False)


def _find(folder: Path) -> Path:
    """The folder that holds the weights: `folder`, or its policy/."""
    if folder.is_file():
        raise InputError(
            f"{folder} is a file; a policy is a folder with {WEIGHTS}, as `genpol clone` writes it"
        )
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: pass the --output of `genpol clone`")
    for place in (folder, folder / "policy"):
        if (place / WEIGHTS).is_file() or (place / CONFIG).is_file():
            return place
    hint = ": did that run finish?" if (folder / "config.json").is_file() else ""
    raise InputError(f"{folder} holds no policy (no {WEIGHTS}){hint}")
