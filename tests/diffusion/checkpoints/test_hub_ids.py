"""Whether a model on the hub is supported is known before its weights are downloaded."""

from __future__ import annotations

import json

import pytest
import single_files
import torch
from fake_hub import Hub, serving
from huggingface_hub import constants, hf_api
from tiny_models import tiny_sd

from diffusion.errors import InputError
from diffusion.loading import load_pipeline

SMALL = {
    "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json",
}  # fmt: skip


@pytest.fixture
def hub(sd_folder, copied, tmp_path, monkeypatch):
    """Repositories, and the library made to ask for them here."""
    video = tmp_path / "video"
    video.mkdir()
    (video / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "model.safetensors").write_bytes(b"0" * 100)
    half = tmp_path / "half"
    tiny_sd(2).save_pretrained(half, variant="fp16")
    repositories = {
        "owner/sd": sd_folder,
        "owner/video": video,
        "owner/single": tmp_path / "single",
        "owner/half": half,
        "owner/inpaint": copied(**{"unet/config.json": {"in_channels": 9}}),
    }
    with serving(Hub(repositories, gated=("owner/gated",))) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # behind the plain functions
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.setattr(constants, name, str(tmp_path / "cache"))
        yield hub


def weights(hub: Hub) -> list[str]:
    return [name for name in hub.files() if name.endswith((".safetensors", ".bin"))]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("owner/video", "is a WanPipeline; supported are"),
        ("owner/inpaint", "an inpainting model"),
        ("owner/half", "pass --variant fp16"),
        ("owner/single", "download one and pass that file as --model"),
        ("owner/none", "the hub has no public model of that name"),
        ("owner/gated", "is gated: accept its licence"),
        ("owner/", "no hub id"),
    ],
)
def test_what_cannot_be_used_is_refused_before_weights_are_fetched(model, said, hub):
    with pytest.raises(InputError) as error:
        load_pipeline(model)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert weights(hub) == [] and set(hub.files()) <= SMALL
    if model == "owner/video":
        assert hub.files() == ["model_index.json"]


def test_what_can_be_used_is_fetched_once(hub, monkeypatch):
    pipe = load_pipeline("owner/sd")
    expected = tiny_sd()
    assert all(
        map(torch.equal, pipe.unet.state_dict().values(), expected.unet.state_dict().values())
    )
    assert len(weights(hub)) == len(set(weights(hub))) == 3
    first = hub.files()[: len(SMALL)]
    assert set(first) == SMALL  # before anything else
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_pipeline("owner/sd")  # from the cache
    assert hub.asked == []


def test_only_the_variant_is_fetched(hub):
    load_pipeline("owner/half", variant="fp16")
    assert len(weights(hub)) == 3 and all(".fp16." in name for name in weights(hub))


def test_without_a_hub_it_is_one_line(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="the hub cannot be asked") as error:
        load_pipeline("owner/sd")
    assert "\n" not in str(error.value) and hub.asked == []


def test_a_single_files_configuration_may_be_a_hub_id(hub, tmp_path):
    pipe = single_files.pipeline("sd", 1)
    file = single_files.write(tmp_path / "all.safetensors", single_files.whole("sd", pipe))
    load_pipeline(str(file), model_config="owner/sd")
    assert weights(hub) == []


def test_of_what_a_single_file_lacks_the_rest_is_fetched(hub, tmp_path):
    pipe, said = single_files.pipeline("sd", 1), []
    file = single_files.write(tmp_path / "unet.safetensors", pipe.unet.state_dict())
    found = load_pipeline(str(file), model_config="owner/sd", say=said.append)
    assert sorted(name.partition("/")[0] for name in weights(hub)) == ["text_encoder", "vae"]
    assert torch.equal(found.unet.conv_in.weight, pipe.unet.conv_in.weight)
    assert "from owner/sd" in said[-1]
