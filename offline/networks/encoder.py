"""Observations to features: standardised numbers, images through a ResNet, the instruction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from offline.draws import moved
from offline.networks.images import ImageEncoderName, ResNet
from offline.networks.normalizer import LANGUAGE, ObsNormalizer, Shapes, check_obs, image_keys
from offline.types import Obs


class ObsEncoder(nn.Module):
    """Obs -> (B, `dim`).

    The instruction modulates the images' features (FiLM) where there are images, else it is
    concatenated, scaled from unit length to unit variance.

    Args:
        obs_shapes: of each key used; "language" (D,) when there are instructions.
        image_encoder: network for the images, one for each key.
    """

    def __init__(self, obs_shapes: Shapes, image_encoder: ImageEncoderName = "small") -> None:
        super().__init__()
        self.obs_shapes = dict(obs_shapes)
        self.normalizer = ObsNormalizer.from_shapes(obs_shapes)
        spoken = obs_shapes[LANGUAGE][0] if LANGUAGE in obs_shapes else 0
        self.image_keys = image_keys(obs_shapes)
        self.images = nn.ModuleList(ResNet(image_encoder, spoken) for _ in self.image_keys)
        self.concatenated = 0 if self.image_keys else spoken
        self.dim = self.normalizer.dim + sum(net.dim for net in self.images) + self.concatenated
        self.encoded_images = 0
        """Images encoded so far, one for each row and key."""

    def forward(self, obs: Obs) -> Tensor:
        """(B, dim).

        Raises:
            SpecError: a key is missing or has another shape than in training.
        """
        check_obs(obs, self.obs_shapes, who="the critic")
        parts = [self.normalizer(obs)]
        language = (
            moved(obs[LANGUAGE], parts[0].device).to(parts[0])
            if LANGUAGE in self.obs_shapes
            else None
        )
        for key, net in zip(self.image_keys, self.images, strict=True):
            parts.append(net(moved(obs[key], parts[0].device), language))
            self.encoded_images += len(obs[key])
        if self.concatenated and language is not None:
            parts.append(language * math.sqrt(self.concatenated))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
