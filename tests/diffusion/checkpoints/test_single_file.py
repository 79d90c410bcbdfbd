"""Models in one `.safetensors` file, in the layouts of their authors."""

from __future__ import annotations

import pytest
import single_files
import torch
from safetensors.torch import load_file, save_file
from single_files import write
from tiny_families import tiny

from diffusion.checkpoints.single_file import is_single_file, open_single_file
from diffusion.errors import InputError
from diffusion.loading import load_pipeline, prepare_pipeline
from diffusion.pipelines import ImagePolicy


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of other weights than the files': name -> path, written when first asked for."""
    root = tmp_path_factory.mktemp("folders")

    def folder(name: str) -> str:
        if not (root / name).exists():
            made = tiny("flux", 9) if name == "flux" else single_files.pipeline(name, 9)
            made.save_pretrained(root / name)
        return str(root / name)

    return folder


def networks(pipe) -> dict[str, torch.nn.Module]:
    return {k: v for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_a_whole_model_is_read_with_the_configuration_of_a_folder(name, folders, tmp_path):
    pipe, said = single_files.pipeline(name, 1), []
    file = write(tmp_path / "model.safetensors", single_files.whole(name, pipe))
    found = load_pipeline(str(file), model_config=folders(name), say=said.append)
    assert type(found) is type(pipe)
    for part, network in networks(pipe).items():
        assert equal(network, getattr(found, part)), part
    told = [line for line in said if "from the file" in line]
    assert len(told) == 1 and "tokenizer" in told[0].split("from the file")[1]
    assert all(part in told[0].split("from the file")[0] for part in networks(pipe))
    if name == "sd":
        call = {"num_inference_steps": 2, "output_type": "pt", "height": 16, "width": 16}
        images = [
            one("a cat", generator=torch.Generator().manual_seed(0), **call).images
            for one in (pipe, found)
        ]
        torch.testing.assert_close(*images, atol=1e-6, rtol=0)


# diffusers reads the layout of Flux's authors at the real model's width only.
@pytest.mark.parametrize(
    ("name", "own"),
    [("sd", True), ("sd3", True), ("sd", False), ("sd3", False), ("flux", False)],
    ids=lambda value: value if isinstance(value, str) else "authors'" if value else "diffusers'",
)
def test_a_denoiser_alone_takes_the_rest_from_the_folder(name, own, folders, tmp_path):
    pipe = tiny(name, 1) if name == "flux" else single_files.pipeline(name, 1)
    part = "unet" if name == "sd" else "transformer"
    denoiser = getattr(pipe, part)
    if not own:
        tensors = denoiser.state_dict()
    else:
        whole = single_files.whole(name, pipe)
        tensors = {k: v for k, v in whole.items() if k.startswith("model.diffusion_model.")}
        if name == "sd3":
            tensors = {k.removeprefix("model.diffusion_model."): v for k, v in tensors.items()}
    file, said = write(tmp_path / "model.safetensors", tensors), []
    found = load_pipeline(str(file), model_config=folders(name), say=said.append)
    rest = networks(tiny("flux", 9) if name == "flux" else single_files.pipeline(name, 9))
    assert equal(denoiser, getattr(found, part))
    assert all(equal(rest[one], getattr(found, one)) for one in rest if one != part)
    assert any(f"{part} from the file" in line and "vae" in line for line in said)


def test_what_is_read_can_be_trained(folders, tmp_path):
    pipe = single_files.pipeline("sd", 1)
    file = write(tmp_path / "model.safetensors", single_files.whole("sd", pipe))
    policy = ImagePolicy(
        load_pipeline(str(file), model_config=folders("sd")), guidance_scale=1.0, lora_rank=2
    )
    other = ImagePolicy(prepare_pipeline(pipe), guidance_scale=1.0, lora_rank=2)
    x, t = torch.randn(1, *policy.latent_shape), torch.tensor([500])
    torch.testing.assert_close(
        policy.predict(x, t, policy.encode(["a"])), other.predict(x, t, other.encode(["a"]))
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that are no model that fits: name -> path."""
    root = tmp_path_factory.mktemp("files")
    whole = single_files.whole("sd", single_files.pipeline("sd", 1))
    good = write(root / "good.safetensors", whole)
    (root / "cut.safetensors").write_bytes(good.read_bytes()[:-5000])
    (root / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    (root / "empty.safetensors").write_bytes(b"")
    (root / "list.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    (root / "pickle.ckpt").write_bytes(b"\x80")
    one = torch.zeros(4, 4)
    write(root / "lora.safetensors", {"unet.down_blocks.0.attn.to_q.lora_A.weight": one})
    write(root / "kohya.safetensors", {"lora_unet_down_blocks_0_to_q.lora_down.weight": one})
    write(root / "vae.safetensors", {"encoder.conv_in.weight": one, "decoder.x": one})
    write(root / "edm.safetensors", whole | {"edm_mean": one})
    less = {k: v for k, v in whole.items() if "middle_block.0.in_layers.2.weight" not in k}
    write(root / "less.safetensors", less)
    wide = "model.diffusion_model.input_blocks.0.0.weight"
    write(root / "inpaint.safetensors", whole | {wide: torch.zeros(32, 9, 3, 3)})
    write(root / "narrow.safetensors", whole | {wide: torch.zeros(16, 4, 3, 3)})
    return root


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.safetensors", "no file of that name"),
        ("cut.safetensors", "is cut off: it has"),
        ("text.safetensors", "no safetensors file"),
        ("empty.safetensors", "no safetensors file"),
        ("list.safetensors", "no safetensors file"),
        ("pickle.ckpt", "is a pickle"),
        ("lora.safetensors", "is a LoRA, and no model: pass it as --lora"),
        ("kohya.safetensors", "is a LoRA, and no model: pass it as --lora"),
        ("vae.safetensors", "holds no model that is known"),
        ("edm.safetensors", "EDM"),
        ("less.safetensors", "lacks"),
        ("inpaint.safetensors", "takes 9 input channels"),
        ("narrow.safetensors", "is it that of this model"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(name, said, files, folders):
    with pytest.raises(InputError) as error:
        load_pipeline(str(files / name), model_config=folders("sd"))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("sdxl", "is Stable Diffusion, and --model-config"),
        ("sd3", "pass the folder of a StableDiffusionPipeline"),
        (None, "pass --model-config FOLDER"),  # no network in tests
        ("no/such", "--model-config"),
        (".", "no model_index.json"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(config, said, files, folders):
    config = folders(config) if config in ("sdxl", "sd3") else config
    with pytest.raises(InputError) as error:
        load_pipeline(str(files / "good.safetensors"), model_config=config)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_configuration_without_a_single_file_is_refused(folders):
    with pytest.raises(InputError, match="--model-config is for a single"):
        load_pipeline("tiny", model_config=folders("sd"))


def test_a_folder_of_configurations_alone_will_do(folders, files, tmp_path):
    """As fetched from the hub: JSON, vocabularies, and no weights."""
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(folders("sd"), bare, ignore=shutil.ignore_patterns("*.safetensors"))
    load_pipeline(str(files / "good.safetensors"), model_config=str(bare))
    denoiser = {k: v for k, v in load_file(files / "good.safetensors").items() if "stage" not in k}
    file = write(tmp_path / "alone.safetensors", denoiser)
    with pytest.raises(InputError, match="its text_encoder"):
        load_pipeline(str(file), model_config=str(bare))


def test_a_file_that_is_marked_as_v_prediction_is_read_as_that(files, folders, tmp_path):
    mark = {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    save_file(load_file(files / "good.safetensors") | mark, tmp_path / "v.safetensors")
    said = list[str]()
    pipe = load_pipeline(
        str(tmp_path / "v.safetensors"), model_config=folders("sd"), say=said.append
    )
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert any("predicts v" in line for line in said)


def test_the_layout_of_the_real_flux_is_known_by_its_names(tmp_path):
    """Its tensors are too large for a test; names and shapes decide."""
    names = ("double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight")
    some = {name: torch.zeros(4, 4) for name in names} | {"img_in.weight": torch.zeros(8, 64)}
    for prefix in ("", "model.diffusion_model."):
        file = write(tmp_path / "f.safetensors", single_files.prefixed(prefix, some))
        found = open_single_file(str(file))
        assert found.layout.pipeline == "FluxPipeline" and found.channels == 64
        assert found.held("transformer") and not found.held("text_encoder_2")


def test_what_names_a_single_file(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    assert is_single_file("a/b.safetensors") and is_single_file("m.CKPT")
    assert not is_single_file(str(tmp_path / "x.safetensors"))
    assert not is_single_file("owner/name") and not is_single_file("stable-diffusion-v1.5")
