"""`genpol finetune` from end to end on random pipelines of the classes users have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_rewards
import torch
from PIL import Image
from small_runs import checkpoint, error_line, finetune, resume, rows, small_config, words

from genpol.cli import main

COLUMNS = (
    "reward/mean reward/std reward/p10 reward/p50 reward/p90 kl/per_dim kl/nats prdp/loss "
    "prdp/clip_fraction prdp/tie_fraction check/ratio_error train/gradient_norm "
    "time/images_per_second time/seconds memory/peak_mb"
).split()
CALL = {"num_inference_steps": 4, "guidance_scale": 3.0, "eta": 1.0}


@pytest.fixture(scope="module")
def runs(models, prompts, tmp_path_factory):
    """Two epochs of each pipeline: name -> run folder, drawn when first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            assert finetune(model=models[name], prompts=prompts, output=folder / name) == 0
        return folder / name

    return run


def plain_image(model: Path, lora: Path | None, prompt: str, seed: int) -> torch.Tensor:
    """As a diffusers user draws it, with nothing of ours."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    xl = "XL" in json.loads((model / "model_index.json").read_text())["_class_name"]
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    pipe = kind.from_pretrained(model, **({} if xl else {"safety_checker": None}))
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, output_type="pt", **CALL).images[0].float()


def tuner_of(models, prompts, **options):
    from genpol.commands.finetune.command import build

    options = {"model": models["sd"], "reward": "tiny_rewards:brightness"} | options
    return build(small_config(prompts=prompts, **options))[0]


def weights(tuner) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in tuner.trained.parameters.items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max()) for n in a)


@pytest.mark.parametrize("name", ["sd", "sd_v", "sdxl"])
def test_what_a_run_leaves_behind(name, runs):
    run = runs(name)
    summary = json.loads((run / "summary.json").read_text())
    for key in ("eval/reward_before", "eval/reward_after", "time/seconds"):
        assert isinstance(summary[key], float)
    assert summary["train/epochs"] == 2

    table = rows(run)
    assert list(table[0])[0] == "step" and [row["step"] for row in table] == ["0", "1", "2"]
    for row in table[1:]:
        assert all(np.isfinite(float(row[column])) for column in COLUMNS)
        assert float(row["check/ratio_error"]) < 1e-4  # the clip
    assert float(table[0]["eval/reward"]) == summary["eval/reward_before"]
    assert float(table[2]["eval/reward"]) == summary["eval/reward_after"]
    assert float(table[1]["kl/per_dim"]) == 0 < float(table[2]["kl/per_dim"])
    # nats: 256 dimensions, 4 steps, of which the deterministic ones do not count
    factor = float(table[2]["kl/nats"]) / float(table[2]["kl/per_dim"]) / 256
    assert factor == pytest.approx(round(factor)) and round(factor) in (3, 4)

    pictures = {path.name for path in (run / "samples").iterdir()}
    for step in (0, 2):
        assert f"samples_grid-step-{step:06d}.png" in pictures
    with Image.open(run / "samples" / "samples_before_after-step-000002.png") as picture:
        with Image.open(run / "samples" / "samples_grid-step-000002.png") as grid:
            assert picture.width > 1.5 * grid.width
            assert picture.height > 128 + 2 * 13 and grid.height > 128 + 13  # and captions

    config = json.loads((run / "config.json").read_text())
    assert config["command"] == "finetune"
    assert {"torch", "diffusers", "peft", "genpol"} <= config["versions"].keys()
    assert len(config["model_fingerprint"]) == len(config["prompts_fingerprint"]) == 16
    assert config["beta"] == 3e-6 and config["lora_rank"] == 8  # resolved, not null
    assert (run / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("name", ["sd", "sd_v", "sdxl"])
def test_plain_diffusers_and_generate_draw_the_same_image(name, runs, models, tmp_path):
    from diffusion.loading import load_pipeline
    from diffusion.lora import load_lora
    from genpol.commands.generate.command import draw_images

    lora, prompt = runs(name) / "lora", "a red fox"
    theirs = plain_image(models[name], lora, prompt, seed=7)

    pipe = load_pipeline(str(models[name]))
    load_lora(pipe, str(lora))
    ours = draw_images(pipe, [prompt], [7], CALL | {"negative_prompt": ""})[0]
    assert float((ours - theirs).abs().max()) < 1e-3

    untuned = plain_image(models[name], None, prompt, seed=7)
    assert float((untuned - theirs).abs().max()) > 1e-3

    (tmp_path / "p.txt").write_text(prompt + "\n")
    options = {"model": models[name], "lora": lora, "prompts": tmp_path / "p.txt", "seed": 7}
    options |= {"num_inference_steps": 4, "guidance_scale": 3, "output": tmp_path / "out"}
    assert main(["generate", *words(**options)]) == 0
    with Image.open(tmp_path / "out" / "00000.png") as picture:
        pixels = np.asarray(picture, dtype=np.float32) / 255
    assert np.abs(pixels - theirs.permute(1, 2, 0).numpy()).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_training_and_generating_draw_the_same_image(name, models, prompts):
    """Guidance with an empty negative prompt, which SDXL zeroes, is the same on both sides."""
    from diffusion.chain import sample_chain
    from diffusion.loading import load_pipeline
    from genpol.commands.generate.command import draw_images

    tuner = tuner_of(models, prompts, model=models[name])
    cond = tuner.policy.encode(["two owls"])
    noise = [torch.Generator().manual_seed(3)]
    shape = tuner.policy.latent_shape
    chain = sample_chain(tuner.policy.predict, tuner.process, cond, shape, noise)
    trained = tuner.policy.decode(chain.sample)
    pipe = load_pipeline(str(models[name]))
    drawn = draw_images(pipe, ["two owls"], [3], CALL | {"negative_prompt": ""})
    assert float((trained - drawn).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("name", "targets", "rank"), [("sd", "attention", 3), ("sd", "all", 5), ("sdxl", "all", 2)]
)
def test_a_reloaded_lora_is_the_trained_network(name, targets, rank, models, prompts, tmp_path):
    from diffusion.loading import load_pipeline
    from diffusion.lora import load_lora
    from genpol.finetuning.export import save_weights

    tuner = tuner_of(models, prompts, model=models[name], lora_targets=targets, lora_rank=rank)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuner.trained.parameters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    cond = tuner.policy.encode(["a hen", "a cow"])
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([900, 20])
    with torch.no_grad():
        trained = tuner.policy.predict(x, t, cond)
        before = tuner.policy.predict_reference(x, t, cond)

    folder = save_weights(tuner.policy, tmp_path)
    pipe = load_pipeline(str(models[name]))
    load_lora(pipe, str(folder))
    with torch.no_grad():
        reloaded = tuner.policy._run(pipe.unet.eval(), x, t, cond)
    assert float((reloaded - trained).abs().max()) < 1e-5
    assert float((before - trained).abs().max()) > 1e-2
    assert pipe.unet.peft_config["default"].r == rank


def test_a_lora_of_another_scale_keeps_it(models, prompts, tmp_path):
    """alpha 16 at rank 4 is a scale of 4; loaders of what we save assume 1."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from diffusion.loading import load_pipeline
    from diffusion.lora import load_lora
    from genpol.finetuning.export import save_weights

    unet = load_pipeline(str(models["sd"])).unet
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=["to_q", "to_v"], init_lora_weights=False
    )
    unet.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "theirs",
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    tuner = tuner_of(models, prompts, lora=tmp_path / "theirs")
    cond = tuner.policy.encode(["a hen"])
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    folder = save_weights(tuner.policy, tmp_path)
    pipe = load_pipeline(str(models["sd"]))
    load_lora(pipe, str(folder))
    with torch.no_grad():
        theirs = tuner.policy._run(unet.eval(), x, t, cond)
        ours = tuner.policy._run(pipe.unet.eval(), x, t, cond)
    assert float((ours - theirs).abs().max()) < 1e-5


def test_a_run_may_start_from_a_lora_which_is_then_the_reference(runs, models, prompts, tmp_path):
    lora = runs("sd") / "lora"
    output = tmp_path / "next"
    options = {"model": models["sd"], "prompts": prompts, "lora": lora}
    assert finetune(output=output, **options) == 0
    table = rows(output)
    assert float(table[0]["eval/reward"]) == pytest.approx(
        float(rows(runs("sd"))[2]["eval/reward"]), abs=0.03
    )
    assert float(table[1]["kl/per_dim"]) <= 1e-9 < float(table[2]["kl/per_dim"])

    tuner = tuner_of(models, prompts, lora=lora)
    chain = tuner.draw(["a hen"], 2, 1, 0, reference=True).chain
    assert torch.equal(chain.log_prob, chain.log_prob_ref)
    # Asking the reference must not leave its own adapter to be trained.
    assert tuner.trained.parameters.keys() == tuner.policy.trainable().keys()
    assert all(".default." in name for name in tuner.trained.parameters)


def test_full_fine_tuning_leaves_a_unet_that_loads(models, prompts, tmp_path):
    from diffusers import UNet2DConditionModel

    output = tmp_path / "full"
    options = {"model": models["sd"], "prompts": prompts, "train": "full", "epochs": 1}
    assert finetune(output=output, learning_rate=1e-3, **options) == 0
    saved = UNet2DConditionModel.from_pretrained(output / "unet", use_safetensors=True)
    start = UNet2DConditionModel.from_pretrained(models["sd"] / "unet").state_dict()
    _, tensors, _ = checkpoint(output)
    for name, value in saved.state_dict().items():
        assert torch.equal(value, tensors[f"weights.{name}"])
    assert any(not torch.equal(value, start[name]) for name, value in saved.state_dict().items())
    assert not (output / "lora").exists()

    (tmp_path / "p.txt").write_text("a hen\n")
    options = {"model": models["sd"], "prompts": tmp_path / "p.txt", "num_inference_steps": 4}
    for name, more in {"new": {"unet": output / "unet"}, "old": {}}.items():
        assert main(["generate", *words(output=tmp_path / name, **options, **more)]) == 0
    new, old = ((tmp_path / n / "00000.png").read_bytes() for n in ("new", "old"))
    assert new != old


def test_ema_low_precision_storage_and_ddpm_run(models, prompts, tmp_path):
    from safetensors.torch import load_file

    output = tmp_path / "run"
    options = {"model": models["sd"], "prompts": prompts, "ema": 0.9, "clip": 0.1}
    options |= {"storage_dtype": "bf16", "autocast": "bf16", "scheduler": "ddpm"}
    assert finetune(output=output, gradient_checkpointing=True, **options) == 0
    assert float(rows(output)[2]["check/ratio_error"]) < 0.1
    _, tensors, values = checkpoint(output)
    assert values["updates"] == 4
    saved = load_file(output / "lora" / "pytorch_lora_weights.safetensors")
    for name, value in saved.items():  # users get the average, not the last iterate
        stem = name.removeprefix("unet.").removesuffix(".weight")
        assert torch.equal(value, tensors[f"ema.{stem}.default.weight"])
        if "lora_B" in name:
            assert not torch.equal(value, tensors[f"weights.{stem}.default.weight"])


def test_gradient_checkpointing_has_the_same_gradient(models, prompts, monkeypatch):
    plain = tuner_of(models, prompts, inner_steps=1)
    plain.run_epoch()

    calls = []
    original = torch.utils.checkpoint.checkpoint

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    lean = tuner_of(models, prompts, inner_steps=1, gradient_checkpointing=True)
    lean.run_epoch()
    assert len(calls) > 0
    assert largest_difference(weights(plain), weights(lean)) < 1e-6


SMOOTH = {"micro_batch": 64, "rollout_batch": 64, "learning_rate": 1e-3}


def gradient(tuner) -> torch.Tensor:
    """Of the last inner step. Adam turns a gradient's rounding into whole steps where the gradient
    is nearly 0, so weights would say less."""
    return torch.cat([p.grad.flatten() for p in tuner.trained.parameters.values()])


@pytest.fixture(scope="module")
def whole_batches(models, prompts) -> torch.Tensor:
    tuner = tuner_of(models, prompts, **SMOOTH)
    tuner.run_epoch()
    return gradient(tuner)


@pytest.mark.parametrize(
    "sizes", [{"micro_batch": 1}, {"micro_batch": 5}, {"rollout_batch": 1}, {"rollout_batch": 3}]
)
def test_batch_sizes_do_not_change_the_gradient(sizes, models, prompts, whole_batches):
    tuner = tuner_of(models, prompts, **SMOOTH | sizes)
    tuner.run_epoch()
    error = (gradient(tuner) - whole_batches).norm() / whole_batches.norm()
    assert float(error) < 1e-3


def test_tied_rewards_are_warned_of_and_survived(models, prompts, tmp_path, capsys):
    output = tmp_path / "tied"
    options = {"model": models["sd"], "prompts": prompts, "ema": 0.5}
    assert finetune(output=output, reward="tiny_rewards:constant", **options) == 0
    assert "warning: 100% of image pairs" in capsys.readouterr().out
    table = rows(output)
    assert all(float(row["prdp/tie_fraction"]) == 1 for row in table[1:])
    assert all(np.isfinite(float(v)) for row in table[1:] for k, v in row.items() if v)
    _, tensors, _ = checkpoint(output)
    decay = 1 - 1e-2 * 1e-4  # lr x weight decay
    untouched = weights(tuner_of(models, prompts))
    for name, value in untouched.items():
        reached = tensors[f"weights.{name}"]
        assert torch.all(reached.abs() <= value.abs() + 1e-9)
        assert torch.all(reached.abs() >= value.abs() * decay**4 - 1e-9)


@pytest.mark.parametrize(("noise", "code"), [(1e-3, 2), (5e-5, 0), (0.0, 0)])
def test_a_clip_below_the_arithmetic_is_refused(
    noise, code, models, prompts, tmp_path, monkeypatch, capsys
):
    """How noisy the arithmetic is depends on the machine, so noise is put into the re-scoring."""
    from diffusion import selfcheck

    score_steps = selfcheck.score_steps
    monkeypatch.setattr(selfcheck, "score_steps", lambda *a: score_steps(*a) + noise)
    output = tmp_path / "run"
    options = {"model": models["sd"], "prompts": prompts, "output": output, "epochs": 1}
    assert finetune(clip=1e-4, **options) == code
    said = capsys.readouterr()
    assert ("warning: re-scoring noise" in said.out) == (noise == 5e-5)
    if code:
        line = error_line(said.err)
        assert "re-scoring a step moves its log-prob" in line and "Raise --clip" in line
        assert not output.exists() or list(output.iterdir()) == []
    else:
        assert float(rows(output)[0]["check/ratio_error"]) == pytest.approx(noise, abs=1e-5)


@pytest.mark.parametrize("failure", [pytest.param("nan", marks=pytest.mark.slow), "raise"])
def test_a_failing_reward_names_the_prompt_and_keeps_the_checkpoint(
    failure, models, prompts, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "run"
    monkeypatch.setattr(tiny_rewards, "calls", 0)
    monkeypatch.setattr(tiny_rewards, "failure", failure)
    monkeypatch.setattr(tiny_rewards, "after", 3)  # self-check, evaluation, first epoch
    options = {"model": models["sd"], "prompts": prompts, "reward": "tiny_rewards:fragile"}
    assert finetune(output=output, **options) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    assert "checkpoint of epoch 1 is kept" in errors[0]
    assert ("returned nan for prompt" if failure == "nan" else "fell over") in errors[0]
    quoted = [json.dumps(line) for line in prompts.read_text().splitlines()]
    assert any(prompt in errors[0] for prompt in quoted), errors[0]

    monkeypatch.setattr(tiny_rewards, "failure", None)
    assert resume(output) == 0
    straight = tmp_path / "straight"
    assert finetune(output=straight, **options | {"reward": "tiny_rewards:fragile"}) == 0
    _, a, _ = checkpoint(output)
    _, b, _ = checkpoint(straight)
    assert all(torch.equal(a[n], b[n]) for n in b)


def test_a_prompts_file_named_like_the_world_has_no_gold(models, prompts, tmp_path, monkeypatch):
    (tmp_path / "world.txt").write_text(prompts.read_text())
    monkeypatch.chdir(tmp_path)
    assert tuner_of(models, "world.txt").gold == {}
    assert set(tuner_of(models, "world").gold) == {"gold", "gold_wholly", "attributes_hard"}


@pytest.mark.parametrize("rounding", [0.0, 1e-4])
def test_full_training_in_bf16_has_no_kl_before_its_first_update(models, prompts, rounding):
    """Exactly none, even where the frozen copy would say something else in the last bits."""
    model = models["sdxl"]
    tuner = tuner_of(models, prompts, model=model, train="full", autocast="bf16")
    frozen = tuner.policy.networks()[1]
    with torch.no_grad():
        frozen.conv_out.bias += rounding
    chain = tuner.draw(["a cat"], 2, 1, 0, reference=True).chain
    assert torch.equal(chain.log_prob, chain.log_prob_ref) and float(chain.kl.abs().max()) == 0
    tuner.trained.updates = 1
    with torch.no_grad():
        frozen.conv_out.bias += 0.01
    chain = tuner.draw(["a cat"], 2, 1, 0, reference=True).chain
    assert float(chain.kl.max()) > 0  # from then on the copy is asked


def test_what_stands_beside_a_result_is_drawn_scored_and_in_the_summary(
    models, prompts, tmp_path, capsys, with_page
):
    run = tmp_path / "run"
    options = {"model": models["sd"], "prompts": prompts, "epochs": 1, "output": run}
    assert finetune(**options, best_of_k=3, guidance_control="5") == 0
    said = capsys.readouterr().out
    assert "untrained, best of 3: reward " in said and "untrained, guidance 5: reward " in said
    summary = json.loads((run / "summary.json").read_text())
    assert summary["eval/best_of_k/k"] == 3 and summary["eval/best_of_k/reward_calls"] == 6
    assert summary["eval/best_of_k/reward"] >= summary["eval/reward_before"]
    assert (run / "report.html").is_file()
    assert (run / "samples/evaluation_guidance_5.csv").is_file()
