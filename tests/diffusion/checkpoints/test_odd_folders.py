"""Folders that lack something, hold something else, or are of another task: one line each."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import unet

from diffusion.checkpoints.components import heard
from diffusion.errors import InputError
from diffusion.loading import load_pipeline, prepare_pipeline

INDEX = "model_index.json"
UNET = "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
FAMILIES = "supported are StableDiffusionPipeline"


@pytest.fixture
def no_weights(monkeypatch):
    """Fails where a network is read: what is refused here is known before."""
    import diffusers
    import transformers

    def read(*args, **kwargs):
        raise AssertionError("weights were read")

    for kind in (diffusers.ModelMixin, transformers.PreTrainedModel, diffusers.DiffusionPipeline):
        monkeypatch.setattr(kind, "from_pretrained", read)


BEFORE_WEIGHTS = {
    "unknown class": ({INDEX: {"_class_name": "StrangePipeline"}}, FAMILIES),
    "a class of another task": (
        {INDEX: {"_class_name": "StableDiffusionInpaintPipeline"}},
        FAMILIES,
    ),
    "a community class": ({INDEX: {"_class_name": ["pipeline", "Mine"]}}, "is a Mine; supported"),
    "an empty community class": ({INDEX: {"_class_name": []}}, "has no _class_name"),
    "no class": ({INDEX: {"_class_name": None}}, "has no _class_name"),
    "null unet": ({INDEX: {"unet": [None, None]}}, "has no unet (absent or null"),
    "null text encoder": ({INDEX: {"text_encoder": [None, None]}}, "has no text_encoder"),
    "null scheduler": ({INDEX: {"scheduler": None}}, "has no scheduler"),
    "a part that is a word": ({INDEX: {"vae": "AutoencoderKL"}}, "has no vae"),
    "unknown network": ({INDEX: {"unet": ["diffusers", "UNet9"]}}, "the unet of"),
    "unknown scheduler": ({INDEX: {"scheduler": ["diffusers", "Zen"]}}, "does not have"),
    "inpainting": ({UNET: {"in_channels": 9}}, "an inpainting model"),
    "instruct-pix2pix": ({UNET: {"in_channels": 8}}, "instruct-pix2pix"),
    "depth": ({UNET: {"in_channels": 5}}, "depth map"),
    "another autoencoder": ({"vae/config.json": {"latent_channels": 16}}, "16: it is of another"),
    "EDM": (
        {INDEX: {"scheduler": ["diffusers", "EDMEulerScheduler"]}},
        "EDMEulerScheduler: the model is of EDM's",
    ),
    "a flow": (
        {INDEX: {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}},
        "rectified flow",
    ),
    "zero SNR": ({SCHEDULER: {"rescale_betas_zero_snr": True}}, "zero SNR"),
    "betas of no number": ({SCHEDULER: {"beta_start": "low"}}, "refuses its configuration"),
}


@pytest.mark.parametrize("case", BEFORE_WEIGHTS)
def test_it_is_known_before_weights_are_read(case, copied, no_weights):
    changes, said = BEFORE_WEIGHTS[case]
    with pytest.raises(InputError) as error:
        load_pipeline(str(copied(**changes)))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("name", [INDEX, UNET, "vae/config.json", SCHEDULER])
@pytest.mark.parametrize("text", ["{", "[]", "3", "", "\x00", "[" * 100_000])
def test_broken_json_is_one_line_that_names_the_file(name, text, copied, no_weights):
    folder = copied()
    (folder / name).write_text(text)
    with pytest.raises(InputError) as error:
        load_pipeline(str(folder))
    assert name in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(part, copied):
    folder = copied()
    shutil.rmtree(folder / part)
    with pytest.raises(InputError, match=f"has no folder {part}/"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_an_empty_part_is_named(part, copied):
    folder = copied()
    shutil.rmtree(folder / part)
    (folder / part).mkdir()
    with pytest.raises(InputError) as error:
        load_pipeline(str(folder))
    assert "cannot load pipeline" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["config.json", "diffusion_pytorch_model.safetensors"], "one network"),
        (["pytorch_lora_weights.safetensors"], "a LoRA: pass it as --lora"),
        (["v1-5-pruned.safetensors"], "pass that file as --model"),
        (["readme.txt"], "the folder that save_pretrained"),
    ],
)
def test_a_folder_that_is_no_pipeline_says_what_it_is(files, said, tmp_path):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="has no model_index.json") as error:
        load_pipeline(str(tmp_path))
    assert said in str(error.value)


# -- what the libraries would only have logged ----------------------------------------------------


def changed_weights(folder, name: str, change) -> None:
    file = folder / name
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


NETWORKS = {
    "unet": ("unet/diffusion_pytorch_model.safetensors", "conv_in.weight"),
    "vae": ("vae/diffusion_pytorch_model.safetensors", "quant_conv.weight"),
    "text_encoder": ("text_encoder/model.safetensors", "final_layer_norm.bias"),
}


@pytest.mark.parametrize("part", NETWORKS)
def test_weights_that_would_be_random_are_an_error(part, copied):
    name, tensor = NETWORKS[part]
    folder = copied()

    def drop(tensors):
        key = next(key for key in tensors if key.endswith(tensor))
        del tensors[key]

    changed_weights(folder, name, drop)
    with pytest.raises(InputError) as error:
        load_pipeline(str(folder))
    said = str(error.value)
    assert f"the weights of its {part} lack 1 tensors" in said and tensor in said


@pytest.mark.parametrize("part", NETWORKS)
def test_tensors_of_no_layer_are_one_warning(part, copied):
    folder = copied()
    name = NETWORKS[part][0]
    extra = {f"new.{i}.weight": torch.zeros(2) for i in range(5)}
    old = {"text_model.embeddings.position_ids": torch.arange(4)[None]}  # of old files, harmless
    changed_weights(folder, name, lambda tensors: tensors.update(extra | old))
    said = list[str]()
    load_pipeline(str(folder), say=said.append)
    assert len(said) == 1 and said[0].startswith(f"warning: the {part} of ")
    assert "5 tensors" in said[0] and "new.0.weight" in said[0] and "2 more" in said[0]


def test_another_shape_is_one_line(copied):
    with pytest.raises(InputError, match="its unet") as error:
        load_pipeline(str(copied(**{UNET: {"cross_attention_dim": 48}})))
    assert "\n" not in str(error.value)


def test_settings_that_a_class_does_not_know_are_one_warning(copied):
    said = list[str]()
    folder = copied(**{INDEX: {"refiner": ["diffusers", "UNet2DConditionModel"]}})
    (folder / "refiner").mkdir()
    shutil.copytree(folder / "unet", folder / "refiner", dirs_exist_ok=True)
    load_pipeline(str(folder), say=said.append)
    assert len(said) == 1 and said[0].startswith("warning: ") and "refiner" in said[0]
    assert "\n" not in said[0]


def test_settings_of_a_network_that_are_lost_are_one_warning(copied):
    said = list[str]()
    load_pipeline(str(copied(**{UNET: {"gated_attention": True}})), say=said.append)
    assert len(said) == 1 and "gated_attention" in said[0] and said[0].startswith("warning: ")


def test_what_the_class_changes_in_its_scheduler_is_said(copied):
    from diffusion.checkpoints.schedulers import replaced

    said = list[str]()
    folder = copied(**{SCHEDULER: {"steps_offset": 0, "clip_sample": True}})
    pipe = load_pipeline(str(folder), say=said.append)
    assert pipe.scheduler.config.steps_offset == 1 and not pipe.scheduler.config.clip_sample
    assert len(said) == 1 and "steps_offset 0 -> 1" in said[0]
    assert "clip_sample True -> False" in replaced(pipe)


def test_a_whole_folder_says_nothing(sd_folder, capfd):
    said = list[str]()
    load_pipeline(str(sd_folder), say=said.append)
    assert said == []


def test_loggers_are_as_before():
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [(one.level, list(one.handlers)) for one in loggers]
    said = list[str]()
    with pytest.raises(KeyError), heard(said.append):
        logging.getLogger("diffusers.x").warning("Expected types for unet:\n %s", "A, got B")
        logging.getLogger("transformers.y").warning("something else")
        logging.getLogger("diffusers.x").warning("Expected types for unet:\n %s", "A, got B")
        raise KeyError
    assert [(one.level, list(one.handlers)) for one in loggers] == before
    assert said == ["warning: diffusers says: Expected types for unet: A, got B"]


# -- pipelines that are loaded already ------------------------------------------------------------


def test_a_loaded_pipeline_with_an_inpainting_unet_is_refused():
    from tiny_models import tiny_sd

    pipe = tiny_sd()
    pipe.unet = unet(in_channels=9)
    with pytest.raises(InputError, match="inpainting"):
        prepare_pipeline(pipe)


@pytest.mark.parametrize(("name", "more"), [("flux", 32), ("sd3", 33), ("sana", 8)])
def test_transformers_of_other_tasks_are_refused(name, more):
    from tiny_families import tiny

    pipe = tiny(name)
    prepare_pipeline(pipe)
    pipe.transformer.register_to_config(in_channels=more)
    with pytest.raises(InputError, match=f"takes {more} input channels"):
        prepare_pipeline(pipe)


def test_the_message_points_at_a_page_that_is_there():
    from pathlib import Path

    root = Path(__file__).parents[3]
    with pytest.raises(InputError, match="EXTENDING") as error:
        prepare_pipeline(object())
    assert "--family module:Class" in str(error.value) and (root / "docs/EXTENDING.md").is_file()


def test_the_shipped_pipeline_passes_every_check(no_weights, monkeypatch):
    from diffusion.loading import TINY, checked

    found = checked(str(TINY), "tiny", "keep", None)
    assert found.class_name == json.loads((TINY / INDEX).read_text())["_class_name"]
