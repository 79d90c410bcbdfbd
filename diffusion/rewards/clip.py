"""Rewards that are a CLIP similarity: `clip`, `pickscore`, `hpsv2`, with the user's weights.

With e_I, e_C the unit-length embeddings of an image and its prompt (all (B,), raw):

    clip       100 <e_I, e_C>         CLIP score, about 15-40 (arXiv 2104.08718, as in torchmetrics)
    pickscore  exp(logit_scale) <e_I, e_C>   about 18-24 (arXiv 2305.01569, its model card)
    hpsv2      <e_I, e_C>             about 0.20-0.35 (arXiv 2306.09341, its released code)

`clip` is not cut off at 0 (torchmetrics does), since ties teach nothing. PickScore's logit_scale is
that of its checkpoint, exp about 100: papers that print it near 0.2 left that factor out, so a
weight w there is 0.01*w here; some code divides by 26 instead. Square images agree with HPSv2's
code; others are cropped here and padded there.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel
from transformers.utils import cached_file

from diffusion.errors import InputError
from diffusion.rewards.preprocess import read_preprocess
from diffusion.rewards.reward import RewardFn

CLIP_LOCATION = "openai/clip-vit-large-patch14"
PICKSCORE_LOCATION = "yuvalkirstain/PickScore_v1"
HPSV2_LOCATION = "adams-story/HPSv2-hf"  # a conversion to transformers; the release is open_clip's

_BATCH = 64  # images encoded at once
_CACHED_PROMPTS = 10_000


class ClipEncoder:
    """A CLIPModel with its tokenizer and preprocessing, from a folder or hub id.

    Weights are safetensors; with `trust` also PyTorch pickles, read with weights_only=True.
    Raises InputError where anything is missing; `reward` is the name it says that to.
    """

    def __init__(
        self, location: str, *, reward: str, device: str | torch.device, trust: bool
    ) -> None:
        location = _checked_location(location, reward)
        try:
            loaded: Any = CLIPModel.from_pretrained(
                location,
                output_loading_info=True,
                use_safetensors=None if trust else True,
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(location)
        except Exception as error:  # OSError, ValueError, SafetensorError, network errors
            raise _cannot_load(location, reward, error, trust) from error
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise InputError(
                f'Reward "{reward}": {location} is not a whole CLIPModel, it lacks '
                f"{len(missing)} weights such as {missing[0]}. Expected text and image towers."
            )
        vocabulary = model.config.text_config.vocab_size
        # With no tokenizer files transformers makes one of two words, and says nothing.
        if not 3 < len(tokenizer) <= vocabulary:
            raise InputError(
                f'Reward "{reward}": the tokenizer in {location} has {len(tokenizer)} tokens, the '
                f"model {vocabulary}. Is tokenizer.json (or vocab.json and merges.txt) there?"
            )
        self.model = model.float().to(device).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._max_tokens = model.config.text_config.max_position_embeddings
        self._preprocess = read_preprocess(
            _image_config(location), model.config.vision_config.image_size
        )
        self._texts: dict[str, Tensor] = {}

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), the temperature of the checkpoint: ()."""
        return self.model.logit_scale.exp()

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> unit-length embeddings (B, D) on the model's device."""
        parts = []
        for batch in images.split(_BATCH):
            pixels = self._preprocess(batch.to(self.model.device))
            with self._full_precision():
                parts.append(_unit(self.model.get_image_features(pixel_values=pixels)))
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Tensor:
        """Unit-length embeddings (B, D); too long prompts are cut, repeated ones cost nothing.

        Prompts are encoded one by one, so that a reward never depends, not even in its last bit,
        on which other prompts were new: a resumed run equals the uninterrupted one.
        """
        found: dict[str, Tensor] = {}
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._texts:
                self._texts[prompt] = self._text(prompt)
                if len(self._texts) > _CACHED_PROMPTS:
                    del self._texts[next(iter(self._texts))]
            found[prompt] = self._texts[prompt]
        return torch.stack([found[prompt] for prompt in prompts])

    def _text(self, prompt: str) -> Tensor:
        tokens = self._tokenizer(
            prompt, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self.model.device)
        with self._full_precision():
            return _unit(self.model.get_text_features(**tokens))[0]

    def _full_precision(self) -> torch.autocast:
        """Scores must not vary with the precision that the caller trains in."""
        return torch.autocast(self.model.device.type, enabled=False)

    def cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        """<e_I, e_C> in [-1, 1]: (B,)."""
        return (self.images(images) * self.texts(prompts)).sum(dim=-1)


def clip_score(encoder: ClipEncoder, images: Tensor, prompts: list[str]) -> Tensor:
    """100 times the cosine: (B,)."""
    return 100 * encoder.cosine(images, prompts)


def pickscore(encoder: ClipEncoder, images: Tensor, prompts: list[str]) -> Tensor:
    """The cosine times the checkpoint's own exp(logit_scale): (B,)."""
    return encoder.scale * encoder.cosine(images, prompts)


def hpsv2(encoder: ClipEncoder, images: Tensor, prompts: list[str]) -> Tensor:
    """The cosine: (B,)."""
    return encoder.cosine(images, prompts)


def load_clip(location: str | None, device: str | torch.device, trust: bool) -> RewardFn:
    where = location or CLIP_LOCATION
    return partial(clip_score, ClipEncoder(where, reward="clip", device=device, trust=trust))


def load_pickscore(location: str | None, device: str | torch.device, trust: bool) -> RewardFn:
    where = location or PICKSCORE_LOCATION
    return partial(pickscore, ClipEncoder(where, reward="pickscore", device=device, trust=trust))


def load_hpsv2(location: str | None, device: str | torch.device, trust: bool) -> RewardFn:
    where = location or HPSV2_LOCATION
    return partial(hpsv2, ClipEncoder(where, reward="hpsv2", device=device, trust=trust))


def _unit(features: Any) -> Tensor:
    # transformers 5 returns a ModelOutput whose pooler_output is what 4 returned as a tensor.
    features = features if isinstance(features, Tensor) else features.pooler_output
    return features / features.norm(dim=-1, keepdim=True)


def _checked_location(location: str, reward: str) -> str:
    """An existing folder, or what can only be a hub id ("owner/name")."""
    path = Path(os.path.expanduser(location))
    if path.is_dir():
        return str(path)
    if path.exists() or location.startswith(("/", ".", "~")) or location.count("/") != 1:
        found = "a file" if path.exists() else "nothing"
        signs = " A path with a + is best quoted." if "+" in location else ""
        raise InputError(
            f'Reward "{reward}" expected a folder with a transformers CLIPModel at {location}, '
            f"but there is {found}.{signs}"
        )
    return location


def _cannot_load(location: str, reward: str, error: Exception, trust: bool) -> InputError:
    text = " ".join(str(error).split())
    pickles = "" if trust else ", as safetensors (PyTorch .bin files need --trust)"
    return InputError(
        f'Reward "{reward}" cannot load a CLIPModel from "{location}" '
        f"({type(error).__name__}: {text[:160]}). Give the folder of one that you downloaded, "
        f"{reward}@FOLDER{pickles}."
    )


def _image_config(location: str) -> dict[str, Any] | None:
    """The image processor's settings, from either file that transformers has kept them in."""
    for filename in ("preprocessor_config.json", "processor_config.json"):
        try:
            path = cached_file(location, filename)
        except OSError:
            continue
        if path is None:
            continue
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        config = config.get("image_processor", config)
        if "image_mean" in config or "size" in config:
            return config
    return None
