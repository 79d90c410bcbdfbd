"""`genpol finetune --plan`: what it says, and that a run takes what it says."""

from __future__ import annotations

import json

import pytest
import torch

from diffusion.planning.live_bytes import LiveBytes
from genpol.cli import main
from genpol.commands.finetune.command import build, complete
from genpol.commands.finetune.options import Finetune
from genpol.commands.finetune.plan import plan_of

SMALL = {
    **{"prompts_per_epoch": 2, "images_per_prompt": 2, "inner_steps": 2, "num_inference_steps": 2},
    **{"eval_images": 2, "device": "cpu", "reward": "jpeg_compressibility", "prompts": "animals"},
    **{"rollout_batch": 4, "micro_batch": 4, "gold_reward": "", "epochs": 1},
}
RUNS = {
    "lora": {"model": "tiny", "guidance_scale": 3.0},
    "full": {"model": "tiny-flow", "train": "full", "ema": 0.9, "gradient_checkpointing": True},
}


def measured(config: Finetune) -> int:
    """The most bytes of tensors alive at a time in an epoch and an evaluation."""
    tuner, _ = build(config)
    modules = [p for p in tuner.policy.pipe.components.values() if isinstance(p, torch.nn.Module)]
    modules += [m for m in tuner.policy.networks() if m not in modules]
    with LiveBytes() as live:
        live.add(t for m in modules for t in (*m.parameters(), *m.buffers()))
        live.add(tuner.trained.average.values())
        tuner.run_epoch()
        tuner.evaluate(2)
    return live.peak_total


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "lora" else ()) for name in RUNS]
)
def test_a_run_takes_what_the_plan_says(name):
    config = complete(Finetune(**SMALL | RUNS[name]))
    found = plan_of(config)
    phase, planned = found.peak("host")
    assert planned == pytest.approx(measured(config), rel=0.15)
    assert phase in ("train", "decode", "show")


@pytest.fixture(scope="module")
def made():
    """A plan for four processes on a card, made once."""
    words = {"prompts_per_epoch": 3, "images_per_prompt": 5, "micro_batch": 64, "rollout_batch": 3}
    return plan_of(complete(Finetune(model="tiny", device="cuda", processes=4, plan=True, **words)))


def said(made, monkeypatch, capsys, *words):
    monkeypatch.setattr("genpol.commands.finetune.plan.plan_of", lambda config: made)
    more = ["--micro-batch", "64", "--rollout-batch", "3", "--device", "cuda"]
    assert main(["finetune", "--plan", *more, *words]) == 0
    return capsys.readouterr().out


def test_a_table_says_what_lies_where_and_what_to_try(made, monkeypatch, capsys):
    text = said(made, monkeypatch, capsys, "--device-memory", "0.52")
    assert "nothing was loaded" in text and "CUDA keeps about" in text
    assert "each of 4 processes" in text
    for item in ("text_encoder", "unet", "vae", "LoRA", "gradients", "moments of AdamW"):
        assert f"\n  {item} " in text, item
    assert "does not fit" in text and "--micro-batch 1" in text
    tried = text[text.index("In this order, try") :]
    assert tried.index("--micro-batch 1") < tried.index("--dtype bf16")
    assert ": it fits" in said(made, monkeypatch, capsys, "--device-memory", "24")
    more = said(made, monkeypatch, capsys, "--device-memory", "0.65")
    assert "--micro-batch 1" in more and "which fits" in more and "--dtype bf16" not in more


def test_json_has_every_number(made, monkeypatch, capsys):
    found = json.loads(said(made, monkeypatch, capsys, "--json"))
    assert found["device"] == "cuda"
    assert found["facts"]["images_per_epoch"] == 4  # of 15 on 4 processes
    sizes = {item["name"]: item for item in found["items"]}
    trained = found["facts"]["trained_parameters"]
    assert sizes["gradients"]["bytes"] == 4 * trained
    assert sizes["moments of AdamW"]["bytes"] == 8 * trained
    assert sizes["unet"]["bytes"] == 4 * found["facts"]["denoiser_parameters"]
    for phase, each in found["phases"].items():
        here = (i for i in found["items"] if phase in i["phases"] and i["place"] == "device")
        assert each["device"] == sum(i["bytes"] for i in here)
    worst = max(found["phases"], key=lambda name: found["phases"][name]["device"])
    assert found["peak"]["device"]["phase"] == worst


def test_a_plan_of_what_is_not_there_is_one_line(capsys):
    words = ["finetune", "--plan", "--reward", "clip", "--prompts", "animals"]
    assert main([*words, "--model", "nobody/has-this"]) == 2
    assert "nobody/has-this" in capsys.readouterr().err
    assert main([*words, "--model", "./nowhere"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("on", [pytest.param("host", marks=pytest.mark.slow), "device"])
def test_the_reference_of_full_fine_tuning_waits_with_room_for_what_it_replaces(on):
    words = {"model": "tiny", "device": "cuda", "dtype": "bf16", "train": "full", "plan": True}
    words |= {"prompts_per_epoch": 1, "images_per_prompt": 2, "eval_images": 1}
    words |= {"num_inference_steps": 2, "rollout_batch": 2, "micro_batch": 2}
    found = plan_of(complete(Finetune(**words, reference_on=None if on == "host" else on)))
    items = {item.name: (item.place, item.size) for item in found.items}
    trained = found.facts["trained_parameters"]
    if on == "host":  # as it was loaded, and fp32 for the trained weights
        assert items["reference weights"] == ("host", 2 * trained)
        assert items["room for trained weights"] == ("host", 4 * trained)
    else:  # a second network in fp32
        assert items["reference weights"] == ("device", 4 * trained)
        assert "room for trained weights" not in items


def test_a_file_of_weights_that_is_cut_short_is_named(tmp_path):
    import shutil

    from diffusion.errors import InputError
    from diffusion.loading import TINY
    from diffusion.planning.skeleton import skeleton

    folder = shutil.copytree(TINY, tmp_path / "model")
    (file,) = (folder / "vae").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="is no whole safetensors file"):
        skeleton(str(folder))
