"""Folders whose weights are `*.fp16.safetensors`, sharded, or pickles."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_sd

from diffusion.checkpoints.components import variants
from diffusion.errors import InputError
from diffusion.loading import load_pipeline


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half") / "sd"
    tiny_sd(3).to(torch.float16).save_pretrained(folder, variant="fp16")
    return folder


def same(pipe, other) -> bool:
    pairs = zip(pipe.unet.parameters(), other.unet.parameters(), strict=True)
    return all(torch.equal(one.half(), two.half()) for one, two in pairs)


def test_a_variant_is_read_by_its_name(half):
    said = list[str]()
    pipe = load_pipeline(str(half), variant="fp16", say=said.append)
    assert said == [] and same(pipe, tiny_sd(3)) and pipe.unet.dtype == torch.float32


@pytest.mark.parametrize(
    ("variant", "said"), [(None, "pass --variant fp16"), ("ema", "--variant ema: there is fp16")]
)
def test_the_variant_that_is_there_is_named(half, variant, said):
    with pytest.raises(InputError, match=said) as error:
        load_pipeline(str(half), variant=variant)
    assert "\n" not in str(error.value)


def test_a_folder_without_variants_says_so(sd_folder):
    with pytest.raises(InputError, match="--variant fp16: its weights have no variants"):
        load_pipeline(str(sd_folder), variant="fp16")


def test_parts_without_the_variant_are_read_plain_and_named(half, tmp_path):
    folder = tmp_path / "mixed"
    tiny_sd(4).save_pretrained(folder)
    name = "diffusion_pytorch_model{}.safetensors"
    (folder / "unet" / name.format(".fp16")).write_bytes(
        (half / "unet" / name.format(".fp16")).read_bytes()
    )
    said = list[str]()
    assert same(load_pipeline(str(folder), variant="fp16", say=said.append), tiny_sd(3))
    assert len(said) == 1 and said[0].startswith(f'warning: "{folder}" has no fp16 weights of')
    assert "text_encoder" in said[0] and "vae" in said[0] and "unet" not in said[0]
    assert same(load_pipeline(str(folder)), tiny_sd(4))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_read(variant, tmp_path):
    folder = tmp_path / "shards"
    pipe = tiny_sd(5)
    pipe.save_pretrained(folder, variant=variant, max_shard_size="1MB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert same(load_pipeline(str(folder), variant=variant), tiny_sd(5))


def test_a_missing_shard_is_one_line(tmp_path):
    folder = tmp_path / "shards"
    tiny_sd(5).save_pretrained(folder, max_shard_size="1MB")
    sorted((folder / "unet").glob("*.safetensors"))[-1].unlink()
    with pytest.raises(InputError, match="its unet") as error:
        load_pipeline(str(folder))
    assert "\n" not in str(error.value)


def test_weights_that_are_pickles_alone_are_refused(copied):
    folder = copied()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match="pickle"):
        load_pipeline(str(folder))


def test_names_of_weights():
    names = {
        "diffusion_pytorch_model.safetensors": None,
        "diffusion_pytorch_model.fp16.safetensors": "fp16",
        "diffusion_pytorch_model-00001-of-00002.safetensors": None,
        "diffusion_pytorch_model.fp16-00001-of-00002.safetensors": "fp16",
        "diffusion_pytorch_model-00001-of-00002.fp16.safetensors": "fp16",
        "model.non_ema.safetensors": "non_ema",
        "pytorch_model.bin": None,
    }
    for name, variant in names.items():
        assert variants([f"unet/{name}", "unet/config.json", "vae/model.x.bin"], "unet") == {
            variant: {name.rpartition(".")[2]}
        }
    assert variants(["unet/openvino_model.bin", "unet/model.onnx"], "unet") == {}
