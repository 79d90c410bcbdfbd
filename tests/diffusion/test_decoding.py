"""Autoencoders take as many images as fit, by their pixels; larger ones go in tiles."""

from __future__ import annotations

import pytest
import torch
from family_images import policy_of
from tiny_families import FAMILIES

import diffusion.decoding
from diffusion.decoding import PIXELS, images_at_once, in_pieces


@pytest.mark.parametrize(
    ("side", "count"), [(64, 64), (128, 64), (256, 16), (512, 4), (768, 1), (1024, 1), (2048, 1)]
)
def test_passes_have_bounded_pixels(side, count):
    found = images_at_once((side, side), 64)
    assert found == count and (found == 1 or found * side * side <= PIXELS)


def passes(policy, monkeypatch) -> list[tuple[int, ...]]:
    """What the autoencoder's own decode and encode get, in order."""
    vae, seen = policy.pipe.vae, []
    for name in ("decode", "encode"):
        plain = getattr(vae, name)

        def noted(values, *args, plain=plain, **kwargs):
            seen.append(len(values))
            return plain(values, *args, **kwargs)

        monkeypatch.setattr(vae, name, noted)
    return seen


@pytest.mark.parametrize("name", FAMILIES)
def test_small_passes_give_the_images_of_one(name, monkeypatch):
    policy = policy_of(name)
    latents = torch.randn(5, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    whole = policy.decode(latents)
    assert whole.shape == (5, 3, *policy.family.image_size) and whole.dtype == torch.float32
    again = policy.encode_images(whole)
    seen = passes(policy, monkeypatch)
    height, width = policy.family.image_size
    monkeypatch.setattr(diffusion.decoding, "PIXELS", 2 * height * width + 1)
    torch.testing.assert_close(policy.decode(latents), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(policy.encode_images(whole), again, rtol=1e-4, atol=1e-4)
    assert seen == [2, 2, 1] * 2
    assert policy.decode(latents, batch=1).shape == whole.shape and seen[6:] == [1] * 5


def test_large_images_go_in_tiles_and_the_autoencoder_stays_as_it_was(monkeypatch):
    policy = policy_of("sd3")
    vae, (height, width) = policy.pipe.vae, policy.family.image_size
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 16  # a quarter of the image
    latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    whole, tiled, plain = policy.decode(latents), [], vae.tiled_decode

    def noted(z, *args, **kwargs):
        tiled.append(len(z))
        return plain(z, *args, **kwargs)

    monkeypatch.setattr(vae, "tiled_decode", noted)
    monkeypatch.setattr(diffusion.decoding, "PIXELS", height * width - 1)
    images = policy.decode(latents)
    assert tiled == [1, 1] and images.shape == whole.shape
    assert 0 < (images - whole).abs().mean() < 0.1  # seams are blended
    assert not vae.use_tiling and not vae.use_slicing


def test_which_pieces_a_size_needs():
    class Vae:
        use_slicing = use_tiling = False

        def enable_slicing(self):
            self.use_slicing = True

        def enable_tiling(self):
            self.use_tiling = True

    vae = Vae()
    for side, slices, tiles in ((512, False, False), (1024, True, False), (1032, True, True)):
        with in_pieces(vae, (side, side)):
            assert (vae.use_slicing, vae.use_tiling) == (slices, tiles), side
        assert not vae.use_slicing and not vae.use_tiling
    vae.use_tiling = True  # the user's choice
    with in_pieces(vae, (64, 64)):
        assert vae.use_tiling
    assert vae.use_tiling
    with in_pieces(None, (2048, 2048)):  # a pipeline on pixels has none
        pass
