"""What a value of unfinished images is, what it refuses, and its files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from diffusion.chain import Condition
from diffusion.errors import Diverged, InputError
from diffusion.flow import flow_process
from diffusion.process import reverse_process
from diffusion.values.image_value import ImageValue, ValueAbout, load_value
from diffusion.values.levels import levels
from diffusion.values.text import read_text, text_sizes

ABOUT = ValueAbout(
    "StableDiffusionPipeline", (4, 8, 8), {"text": 12, "pooled": 6}, "jpeg", 2.0, 3.0, 16, 1
)


def cond(n: int = 2, tokens: int = 5) -> Condition:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(n, tokens, 12, generator=generator)
    return {"text": text, "pooled": torch.randn(n, 6, generator=generator)}


def value(about: ValueAbout = ABOUT, seed: int = 0) -> ImageValue:
    """With weights that let everything through to the result."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ImageValue(about)
        torch.nn.init.normal_(made.network.head[-1].weight)
    return made.eval()


def test_an_untrained_value_says_the_mean_reward():
    made = ImageValue(ABOUT)
    out = made(torch.randn(2, 4, 8, 8), 0.3, made.text(cond()))
    assert out.shape == (2,) and torch.equal(out, torch.full((2,), 2.0))


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 7, 10), (16, 64, 48), (1, 1, 1)])
def test_latents_of_any_shape(shape):
    made = value(replace(ABOUT, latent_shape=shape))
    out = made(torch.randn(3, *shape), torch.rand(3), made.text(cond(3)), torch.randn(3, *shape))
    assert out.shape == (3,) and out.isfinite().all() and out.std() > 0


def test_each_argument_counts():
    made = value()
    x, text = torch.randn(2, 4, 8, 8), made.text(cond())
    out = made(x, 0.3, text)
    others = (
        made(x + 0.5 * torch.randn(2, 4, 8, 8), 0.3, text),
        made(x, 0.4, text),
        made(x, 0.3, text.flip(0)),
        made(x, 0.3, text, torch.zeros_like(x)),
    )
    for other in others:
        assert (other - out).abs().min() > 1e-5


def test_padding_that_is_masked_does_not_count():
    made = value(replace(ABOUT, text={"text": 12}))
    short = {"text": cond()["text"], "mask": torch.ones(2, 5, dtype=torch.long)}
    long = {
        "text": torch.cat([short["text"], torch.randn(2, 3, 12)], 1),
        "mask": torch.cat([short["mask"], torch.zeros(2, 3, dtype=torch.long)], 1),
    }
    torch.testing.assert_close(made.text(short), made.text(long))
    assert not torch.allclose(made.text(short), made.text({"text": long["text"]}))


def test_only_what_the_prompt_says_is_read_of_a_condition():
    both = cond() | {f"{k}_negative": v for k, v in cond().items()} | {"time_ids": torch.ones(2, 6)}
    assert text_sizes(both) == {"text": 12, "pooled": 6}
    own = {"states": torch.zeros(2, 3, 7), "ids": torch.zeros(2, 3, dtype=torch.long)}
    assert set(read_text(own)) == {"states"}
    with pytest.raises(InputError, match="no floating-point"):
        read_text({"ids": own["ids"]})


def test_other_encoders_are_refused_in_one_line():
    with pytest.raises(InputError, match="text 12, pooled 6, and this pipeline's have text 12:"):
        value().text({"text": cond()["text"]})


def test_a_large_prediction_of_x0_is_bounded():
    made = value()
    x, text = torch.randn(2, 4, 8, 8), made.text(cond())
    hat = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(made(x, 0.9, text, 300 * hat), made(x, 0.9, text, 400 * hat))
    assert not torch.allclose(made(x, 0.9, text, hat / 3), made(x, 0.9, text, hat / 4))


def test_levels_are_those_of_the_noise_whatever_the_steps():
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    flow = flow_process(FlowMatchEulerDiscreteScheduler(), 4, "ode")
    torch.testing.assert_close(levels(flow)[:-1], flow.sqrt_noise.float())  # t itself
    assert levels(flow)[-1] == 0
    few, many = (levels(reverse_process(DDIMScheduler(), n)) for n in (10, 50))
    assert len(few) == 11 and (few.diff() < 0).all() and 0 < few[-2] and few[0] < 1
    assert torch.equal(few[:-1], many[4:-1:5])  # at the same timesteps


def test_what_is_saved_comes_back(tmp_path):
    about = replace(ABOUT, drawn={"sampler": "ode"}, held_out=({"level": 0.5, "r2": 0.1},))
    made = value(about)
    made.meta["steps"] = 3
    made.save(tmp_path / "run" / "value")
    for folder in (tmp_path / "run", tmp_path / "run" / "value"):
        read = load_value(folder)
        assert read.about == about and read.meta == {"steps": 3} and not read.training
        args = (torch.randn(2, 4, 8, 8), 0.3)
        assert torch.equal(read(*args, read.text(cond())), made(*args, made.text(cond())))


def test_saving_again_leaves_one_value_and_a_kill_in_between_a_whole_one(tmp_path):
    value().save(tmp_path)
    old = next(tmp_path.glob("*.safetensors")).read_bytes()
    document = (tmp_path / "value.json").read_bytes()
    other = value(seed=1)
    other.save(tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    (tmp_path / json.loads(document)["weights"]).write_bytes(old)  # both weights, either document
    assert torch.equal(load_value(tmp_path).network.stem[0].weight, other.network.stem[0].weight)
    (tmp_path / "value.json").write_bytes(document)
    assert torch.equal(load_value(tmp_path).network.stem[0].weight, value().network.stem[0].weight)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    made = value()
    made.save(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    made.network.stem[0].weight.data[0, 0] = torch.nan
    with pytest.raises(Diverged, match="network.stem.0.weight is not finite"):
        made.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    from diffusion.values import files

    odd, files._odd = files._odd, lambda tensors: None
    try:
        made.save(tmp_path)
    finally:
        files._odd = odd
    with pytest.raises(InputError, match="network.stem.0.weight holds NaN"):
        load_value(tmp_path)


def changed(folder, **entries):
    path = folder / "value.json"
    document = json.loads(path.read_text())
    for name, entry in entries.items():
        (document if name in document else document["about"])[name] = entry
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"format": "genpol image value 9"}, "expected the format"),
        ({"weights": "../value.safetensors"}, "names no file"),
        ({"weights": "value-0123456789abcdef.safetensors"}, "is missing"),
        ({"width": 24}, "do not fit"),
        ({"width": 0}, "width"),
        ({"blocks": 2}, "lack tensor network.blocks.1"),
        ({"latent_shape": [4, 8]}, "latent_shape"),
        ({"latent_shape": [1 << 20, 1 << 20, 1 << 20]}, "network.stem.0.weight is"),
        ({"std": 0.0}, "std"),
        ({"std": float("nan")}, "std"),
        ({"text": {}}, "text"),
        ({"about": []}, "about"),
    ],
)
def test_a_document_that_does_not_fit_is_one_line(tmp_path, entries, said):
    value().save(tmp_path)
    changed(tmp_path, **entries)
    with pytest.raises(InputError, match=said) as error:
        load_value(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_what_is_no_value_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no image value in"):
        load_value(tmp_path)
    (tmp_path / "value.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="a value of robots, for `genpol steer`"):
        load_value(tmp_path)
    value().save(tmp_path)
    weights = next(tmp_path.glob("value-*"))
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(InputError, match="not the file that was saved"):
        load_value(tmp_path)
    (tmp_path / "value.json").write_text("[" * 5000)
    with pytest.raises(InputError, match="cannot read"):
        load_value(tmp_path)


def test_a_value_of_an_unfinished_run_says_so(tmp_path):
    made = value()
    made.meta["unfinished"] = "3 of 9 steps"
    made.save(tmp_path)
    with pytest.warns(UserWarning, match="3 of 9 steps"):
        load_value(tmp_path)
