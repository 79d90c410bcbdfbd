"""CLIP-based rewards on a tiny random CLIPModel: formulae, preprocessing, weights, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from diffusion.errors import InputError
from diffusion.rewards import load_reward
from diffusion.rewards.clip import ClipEncoder
from diffusion.rewards.preprocess import CLIP_MEAN, CLIP_STD, Preprocess, read_preprocess

torch.set_num_threads(1)

SIZE = 32
SCALE = 37.0  # exp(logit_scale)
PROMPTS = ["red cat", "a dog", "red cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPModel with weights large enough for its embeddings to differ."""
    path = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "re", "red</w>"]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocab, merges=[("r", "e"), ("re", "d</w>")]).save_pretrained(path)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    tower["num_attention_heads"] = 2
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(vocab),
            "max_position_embeddings": 12,
            "bos_token_id": vocab["<|startoftext|>"],
            "eos_token_id": vocab["<|endoftext|>"],
            "pad_token_id": vocab["<|endoftext|>"],
        },
        vision_config={**tower, "image_size": SIZE, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
        model.logit_scale.fill_(np.log(SCALE))
    model.save_pretrained(path)
    settings = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path


def pictures(count: int, height: int = SIZE, width: int = SIZE) -> torch.Tensor:
    """Whole 8-bit values, so that going through files loses nothing."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, 3, height, width))
    return torch.from_numpy(pixels).float() / 255


@pytest.fixture(scope="module")
def logits(folder: Path) -> torch.Tensor:
    """exp(logit_scale) <e_I, e_C> of each picture and its prompt, by the model's own forward."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
        out = model(pixel_values=(pictures(3) - mean) / std, **tokens)
    return out.logits_per_image.diagonal()


def test_scores_equal_the_formulae(folder: Path, logits: torch.Tensor) -> None:
    reward = load_reward(f"clip@{folder}+pickscore@{folder}+hpsv2@{folder}")
    parts = reward.components(pictures(3), PROMPTS)
    assert logits.std() > 0.5  # the three really differ
    torch.testing.assert_close(parts["pickscore"], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts["hpsv2"], logits / SCALE, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts["clip"], 100 * logits / SCALE, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(reward(pictures(3), PROMPTS), sum(parts.values()))


def test_text_scores_do_not_depend_on_their_neighbours(folder: Path) -> None:
    def fresh() -> ClipEncoder:
        return ClipEncoder(str(folder), reward="clip", device="cpu", trust=False)

    together = fresh().texts(["a", "a dog in the rain", "red cat"])
    assert torch.equal(together[2], fresh().texts(["red cat"])[0])


def test_repeated_prompts_are_encoded_once(folder: Path, monkeypatch) -> None:
    encoder = ClipEncoder(str(folder), reward="clip", device="cpu", trust=False)
    calls = []
    once = encoder._text
    monkeypatch.setattr(encoder, "_text", lambda prompt: calls.append(prompt) or once(prompt))
    first = encoder.texts(PROMPTS)
    assert calls == ["red cat", "a dog"]
    assert torch.equal(first[0], first[2])
    encoder.texts(["a dog"])
    assert len(calls) == 2
    # A cache that is full forgets the oldest and still answers.
    monkeypatch.setattr("diffusion.rewards.clip._CACHED_PROMPTS", 2)
    assert torch.equal(encoder.texts(["b", "c", "d", "a dog"])[3], first[1])
    assert len(encoder._texts) == 2


def test_long_prompts_are_cut_not_refused(folder: Path) -> None:
    encoder = ClipEncoder(str(folder), reward="clip", device="cpu", trust=False)
    long = "abcdefghij" * 10
    same = encoder.texts([long, long + "z"])
    assert torch.equal(same[0], same[1])


def test_large_batches_are_split_without_changing_scores(folder: Path, monkeypatch) -> None:
    encoder = ClipEncoder(str(folder), reward="clip", device="cpu", trust=False)
    whole = encoder.images(pictures(5))
    monkeypatch.setattr("diffusion.rewards.clip._BATCH", 2)
    torch.testing.assert_close(encoder.images(pictures(5)), whole)


def test_weights_stay_frozen_and_in_eval(folder: Path) -> None:
    encoder = ClipEncoder(str(folder), reward="clip", device="cpu", trust=False)
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())


# --------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize(
    ("height", "width"), [(96, 96), (97, 64), (50, 131), (20, 28), (32, 32), (33, 32)]
)
def test_preprocessing_follows_the_image_processor(height: int, width: int) -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    x = np.linspace(0, 6, width)[None, :, None] + np.arange(3)
    y = np.linspace(0, 9, height)[:, None, None]
    pixels = (127.5 + 127.5 * np.sin(x) * np.cos(y)).astype(np.uint8)
    processor = module.CLIPImageProcessorPil(**settings)
    expected = processor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    got = read_preprocess(settings, 32)(batch)
    assert got.shape == (1, 3, 32, 32)
    # PIL rounds to 8 bits after each of its two passes; 0.26 is the smallest std.
    assert (got - expected).abs().max() < 1.1 / 255 / 0.26


def test_small_images_are_framed_as_the_processor_does() -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    settings = {"do_resize": False, "crop_size": {"height": 8, "width": 10}}
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 3), dtype=np.uint8)
    processor = module.CLIPImageProcessorPil(**settings)
    expected = processor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(read_preprocess(settings, 8)(batch), expected, rtol=0, atol=1e-5)


def test_preprocess_settings_old_and_new() -> None:
    old = read_preprocess({"size": 40, "crop_size": 32, "resample": 2}, 7)
    assert old == Preprocess(shortest_edge=40, crop=(32, 32), resample="bilinear")
    exact = read_preprocess({"size": {"height": 4, "width": 6}, "do_center_crop": False}, 7)
    assert exact(torch.rand(2, 3, 9, 9)).shape == (2, 3, 4, 6)
    plain = read_preprocess({"do_resize": False, "do_center_crop": False, "do_normalize": False}, 7)
    batch = torch.rand(2, 3, 9, 5)
    assert torch.equal(plain(batch), batch)
    assert read_preprocess(None, 336) == Preprocess(shortest_edge=336, crop=(336, 336))
    with pytest.raises(InputError, match="resampling 0"):
        read_preprocess({"resample": 0}, 7)


def test_preprocess_by_hand() -> None:
    grey = Preprocess(shortest_edge=4, crop=(2, 2), mean=(0.5,) * 3, std=(0.25,) * 3)
    out = grey(torch.full((1, 3, 8, 16), 0.75))
    torch.testing.assert_close(out, torch.ones(1, 3, 2, 2))


def test_settings_are_read_from_either_file(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "clip")
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": SIZE, "crop_size": SIZE}
    (copy / "preprocessor_config.json").unlink()
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": half}))
    encoder = ClipEncoder(str(copy), reward="clip", device="cpu", trust=False)
    assert encoder._preprocess.mean == (0.5, 0.5, 0.5)
    (copy / "processor_config.json").unlink()
    encoder = ClipEncoder(str(copy), reward="clip", device="cpu", trust=False)
    assert encoder._preprocess == Preprocess(shortest_edge=SIZE, crop=(SIZE, SIZE))


# --------------------------------------------------------------------------- aesthetic


def released_head() -> nn.Sequential:
    """The released architecture with small widths: dropout, and no activations."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.Dropout(0.2),
        nn.Linear(16, 12),
        nn.Dropout(0.2),
        nn.Linear(12, 6),
        nn.Dropout(0.1),
        nn.Linear(6, 4),
        nn.Linear(4, 1),
    ).eval()


def head_weights(prefix: str = "layers.") -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in released_head().state_dict().items()}


@pytest.mark.parametrize("prefix", ["layers.", "", "model.mlp."])
def test_aesthetic_is_the_head_on_unit_embeddings(folder: Path, tmp_path: Path, prefix) -> None:
    save_file(head_weights(prefix), tmp_path / "head.safetensors")
    shutil.copytree(folder, tmp_path / "clip")
    encoder = ClipEncoder(str(folder), reward="clip", device="cpu", trust=False)
    embeddings = encoder.images(pictures(3))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    with torch.no_grad():
        expected = released_head()(embeddings)[:, 0]
    assert expected.std() > 1e-3
    for location in (tmp_path, tmp_path / "head.safetensors"):
        got = load_reward(f"aesthetic@{location}")(pictures(3), PROMPTS)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_aesthetic_pickles_need_trust(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "clip")
    torch.save(head_weights(), tmp_path / "head.pth")
    with pytest.raises(InputError, match="pickle.*--trust"):
        load_reward(f"aesthetic@{tmp_path}")
    from_pickle = load_reward(f"aesthetic@{tmp_path}", trust=True)(pictures(2), PROMPTS[:2])
    save_file(head_weights(), tmp_path / "head.safetensors")  # preferred over the .pth beside it
    safe = load_reward(f"aesthetic@{tmp_path}")(pictures(2), PROMPTS[:2])
    assert torch.equal(from_pickle, safe)


class Sly:
    """What a hostile pickle does: run code when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_even_trusted_pickles_run_no_code(tmp_path: Path) -> None:
    torch.save({"layers.0.weight": Sly(tmp_path / "ran")}, tmp_path / "head.pth")
    with pytest.raises(InputError, match="more than weights"):
        load_reward(f"aesthetic@{tmp_path}", trust=True)
    assert not (tmp_path / "ran").exists()


def test_aesthetic_errors(folder: Path, tmp_path: Path) -> None:
    def refused(location: str | None, said: str) -> None:
        with pytest.raises(InputError) as caught:
            load_reward("aesthetic" + (f"@{location}" if location else ""))
        assert said in str(caught.value) and "\n" not in str(caught.value)

    refused(None, "needs weights")
    refused("/no/such/head.safetensors", "no head at")
    shutil.copytree(folder, tmp_path / "clip")
    save_file({"text.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    refused(str(tmp_path), "no aesthetic head")
    weights = head_weights()
    weights["layers.2.weight"] = torch.zeros(12, 9)
    save_file(weights, tmp_path / "a.safetensors")
    refused(str(tmp_path), "layer 2")
    save_file({"0.weight": torch.zeros(1, 5), "0.bias": torch.zeros(1)}, tmp_path / "a.safetensors")
    refused(str(tmp_path), "expects embeddings of 5 numbers")
    (tmp_path / "a.safetensors").write_bytes(b"garbage")
    refused(str(tmp_path), "cannot read")
    save_file(head_weights(), tmp_path / "b.safetensors")
    refused(str(tmp_path), "which of a.safetensors, b.safetensors")


# --------------------------------------------------------------------- folders that will not do


def refused(location: Path | str, said: str, trust: bool = False) -> None:
    with pytest.raises(InputError) as caught:
        load_reward(f"clip@{location}", trust=trust)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_missing_folders(tmp_path: Path) -> None:
    refused("/no/such/folder", "there is nothing")
    refused("folder", "there is nothing")
    refused("/no/such+hps", "quoted")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "there is a file")
    refused(tmp_path, "cannot load a CLIPModel")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to the hub\nCheck your internet connection")

    monkeypatch.setattr(CLIPModel, "from_pretrained", offline)
    refused("openai/clip-vit-large-patch14", "clip@FOLDER")


def test_a_folder_without_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "clip")
    for file in copy.glob("tokenizer*"):
        file.unlink()
    refused(copy, "tokenizer.json")


def test_a_folder_with_half_the_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "clip")
    weights = load_file(copy / "model.safetensors")
    whole = len(weights)
    weights = {key: value for key, value in weights.items() if "vision_model" not in key}
    assert len(weights) < whole
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, "not a whole CLIPModel")


def test_pickled_models_need_trust(folder: Path, tmp_path: Path, logits: torch.Tensor) -> None:
    copy = shutil.copytree(folder, tmp_path / "clip")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    refused(copy, "--trust")
    got = load_reward(f"pickscore@{copy}", trust=True)(pictures(3), PROMPTS)
    torch.testing.assert_close(got, logits, rtol=1e-4, atol=1e-4)


def test_half_precision_weights_are_scored_in_float32(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "clip")
    model = CLIPModel.from_pretrained(folder).half()
    model.save_pretrained(copy)
    encoder = ClipEncoder(str(copy), reward="clip", device="cpu", trust=False)
    assert encoder.model.dtype == torch.float32


def test_scores_do_not_vary_with_the_callers_autocast(folder: Path) -> None:
    encoder = ClipEncoder(str(folder), reward="clip", device="cpu", trust=False)
    plain = encoder.cosine(pictures(2), PROMPTS[:2])
    encoder._texts.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.cosine(pictures(2), PROMPTS[:2]), plain)
