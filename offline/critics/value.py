"""`ValueFunction`: a trained critic, what it was trained on, and its file format.

FOLDER/value.safetensors   weights and observation statistics
FOLDER/config.json         action spec, environment, observation shapes, architecture, meta
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from torch import Tensor, nn

from offline.documents import as_document
from offline.errors import InputError, SpecError
from offline.model_files import ModelDocument, Size, build, described, load_model, save_model
from offline.networks.encoder import ObsEncoder
from offline.networks.ensemble import Dtype, StackedHeads
from offline.networks.heads import CriticHeads
from offline.networks.images import ImageEncoderName
from offline.networks.normalizer import Change, ObsStats
from offline.pictures import at_sizes
from offline.spec import ActionSpec
from offline.types import Obs

WEIGHTS, CONFIG, FORMAT = "value.safetensors", "config.json", "genpol value function 1"
OF_IMAGES = "value.json"  # what the folder of an image pipeline's value has instead


@dataclass(frozen=True)
class ValueSizes:
    """What a document may say of a `ValueFunction`'s networks; documents of before say less."""

    __pydantic_config__ = {"extra": "forbid"}

    hidden: tuple[Size, ...] = (256, 256)
    ensemble: Annotated[int, Ge(1)] = 2
    image_encoder: ImageEncoderName = "small"
    heads: Literal["separate", "stacked"] = "separate"
    critic_dtype: Dtype = "float32"
    lipschitz_bound: Annotated[float, Gt(0)] | None = None
    layer_norm: bool = True


class ValueFunction(nn.Module):
    """Q(observation, action chunk), an ensemble of E heads: an `offline.types.Critic`.

    `encode` is paid once per observation, `score` once per candidate. What is saved is the target
    critic (an average over training), whose minimum over the heads V-GPS ranks by.

    Args:
        spec: of the chunks scored, with `spec.chunk` = H.
        obs_shapes: of each observation key needed.
        env: the environment trained for.
        meta: whatever else should be saved, as JSON.
        hidden, ensemble: of the heads.
        image_encoder: network for image observations.
        heads: "separate" modules, or "stacked" parameters, which `critic_dtype` needs.
        critic_dtype: arithmetic of the stacked heads while learning.
        lipschitz_bound: largest singular value of every layer of the stacked heads, which then
            have no LayerNorm; see `offline.critics.lipschitz`. None leaves them free.
        layer_norm: of the hidden layers; False needs stacked heads.

    Raises:
        SpecError: bfloat16, a bound or no LayerNorm with separate heads.
    """

    def __init__(
        self,
        spec: ActionSpec,
        obs_shapes: Mapping[str, tuple[int, ...]],
        *,
        env: str | None = None,
        meta: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (256, 256),
        ensemble: int = 2,
        image_encoder: ImageEncoderName = "small",
        heads: Literal["separate", "stacked"] = "separate",
        critic_dtype: Dtype = "float32",
        lipschitz_bound: float | None = None,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.spec, self.env, self.meta = spec, env, dict(meta or {})
        self.obs_shapes = {key: tuple(shape) for key, shape in obs_shapes.items()}
        self.architecture = {
            "hidden": list(hidden),
            "ensemble": ensemble,
            "image_encoder": image_encoder,
            "heads": heads,
            "critic_dtype": critic_dtype,
            "lipschitz_bound": lipschitz_bound,
            "layer_norm": layer_norm,
        }
        self.ensemble = ensemble
        self.encoder = ObsEncoder(self.obs_shapes, image_encoder)
        sizes = (self.encoder.dim, spec.chunk * spec.dim, hidden, ensemble)
        self.heads: CriticHeads | StackedHeads
        if heads == "stacked":
            self.heads = StackedHeads(*sizes, critic_dtype, lipschitz_bound, layer_norm)
        elif critic_dtype != "float32":
            raise SpecError(
                f'separate heads learn in float32, received critic_dtype="{critic_dtype}": pass '
                'heads="stacked" with it'
            )
        elif lipschitz_bound is not None:
            raise SpecError(
                f"separate heads have no Lipschitz bound, received {lipschitz_bound}: pass "
                'heads="stacked" with it'
            )
        elif not layer_norm:
            raise SpecError('separate heads have LayerNorm: pass heads="stacked" to go without')
        else:
            self.heads = CriticHeads(*sizes)

    def encode(self, obs: Obs, which: Tensor | None = None) -> Tensor:
        """(B, F): images, numbers and instruction, through the state's part of the first layer.
        Images of another size than in training are resized to that.

        Args:
            which: (C,) indices of the heads to compute this for, (B, C * N); None is all.

        Raises:
            SpecError: a key is missing or has another shape than in training.
        """
        if any(len(shape) == 3 for shape in self.obs_shapes.values()):
            obs = at_sizes(obs, self.obs_shapes)
        return self.heads.project(self.encoder(obs), which)

    def score(self, features: Tensor, act: Tensor, which: Tensor | None = None) -> Tensor:
        """(B, F) from `encode` and (B, K, H, A), normalised by `spec` -> (E, B, K).

        Args:
            which: (C,) as passed to `encode`; the result is (C, B, K).

        Raises:
            SpecError: another chunk length or action dimension.
        """
        if act.ndim != 4 or tuple(act.shape[2:]) != (self.spec.chunk, self.spec.dim):
            raise SpecError(
                f"this critic scores chunks (B, K, {self.spec.chunk}, {self.spec.dim}), received "
                f"{tuple(act.shape)}: was it trained with another --action-chunk?"
            )
        return self.heads(features, act, which)

    def forward(self, obs: Obs, act: Tensor) -> Tensor:
        """(B, K, H, A), normalised by `spec` -> (E, B, K)."""
        return self.score(self.encode(obs), act)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile scores are differentiable in actions alone, which is all that actors need."""
        params = [param for param in self.parameters() if param.requires_grad]
        for param in params:
            param.requires_grad_(False)
        try:
            yield
        finally:
            for param in params:
                param.requires_grad_(True)

    def restandardise(self, stats: ObsStats) -> Change:
        """Standardise observations by other statistics and stay the function that it is; what
        networks on the same encoding have to absorb."""
        change = self.encoder.normalizer.refit(stats)
        self.heads.absorb(change)
        return change

    def tighten(self) -> None:
        """Bring heads with a Lipschitz bound back within it; to be called after every step."""
        if isinstance(self.heads, StackedHeads):
            self.heads.tighten()

    def require_env(self, name: str, *, allow_other: bool = False) -> None:
        """Check that the critic was trained for the environment `name`.

        Raises:
            SpecError: it was trained for another, and that is not allowed.
        """
        if self.env is not None and self.env != name and not allow_other:
            raise SpecError(
                f"the critic was trained for {self.env}, the episodes are in {name}: it would rank "
                "by another task's success. Pass a value function trained for this task"
            )

    def save(self, folder: str | Path) -> Path:
        """Write both files; the folder holds the old critic or the new one, whatever happens."""
        document = described(self, self.architecture, format=FORMAT)
        return save_model(folder, WEIGHTS, self, CONFIG, document)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> ValueFunction:
        """Read what `save` wrote, from its folder or from that of a `genpol value` run.

        Nothing is unpickled. The result is in eval mode and needs no gradients.

        Raises:
            InputError: no such folder, or something else in it.
        """
        folder = _find(Path(folder))
        document, weights = load_model(folder, WEIGHTS, CONFIG, kind="value function", form=FORMAT)
        said = as_document(document, ModelDocument, f"cannot read the value function in {folder}")
        sizes = as_document(said.architecture, ValueSizes, f'{folder / CONFIG}: its "architecture"')

        def make() -> ValueFunction:
            return cls(
                said.action_spec(), said.obs_shapes, env=said.env, meta=said.meta, **vars(sizes)
            )

        value = build(make, weights, folder / WEIGHTS, CONFIG, kind="value function")
        return value.to(device).eval().requires_grad_(False)


def _find(folder: Path) -> Path:
    """The folder that holds the weights: `folder`, or its value/."""
    if folder.is_file():
        raise InputError(
            f"{folder} is a file; a value function is a folder with {WEIGHTS}, as `genpol value` "
            "writes it (pickled critics are never read)"
        )
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: pass the --output of `genpol value`")
    for place in (folder, folder / "value"):
        if (place / WEIGHTS).is_file():
            return place
    hint = ": did that run finish?" if (folder / CONFIG).is_file() else ""
    if any((place / OF_IMAGES).is_file() for place in (folder, folder / "value")):
        hint = ": it is a value of an image pipeline, for `genpol generate --value`"
    raise InputError(f"{folder} holds no value function (no {WEIGHTS}){hint}")
