"""What stands beside a prompt in its file reaches the reward and the pipeline, and resumes."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from small_runs import SMALL, finetune, resume, words
from tiny_models import tiny_sdxl

from diffusion.families import family_class
from diffusion.prompts.prompt import Prompt, metadata_of
from genpol.cli import main
from genpol.commands.generate.command import draw_images

SEEN: list[tuple[str, str | None, dict]] = []


def noted(images, prompts):
    """A reward that notes its prompts."""
    SEEN.extend((str(p), getattr(p, "negative", None), dict(metadata_of(p))) for p in prompts)
    return images.mean((1, 2, 3)) + torch.linspace(0, 1, len(images))


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    values = [
        {"caption": f"prompt {i}", "negative_prompt": "blur" if i % 2 else None, "n": i}
        for i in range(8)
    ]
    values[3]["caption"] = "long " * 20
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_rows_reach_the_reward_of_training_evaluation_and_a_resumed_run(
    models, rows, tmp_path, capsys
):
    SEEN.clear()
    output, reward = tmp_path / "run", f"{__name__}:noted"
    options = {"model": models["sd"], "prompts": rows, "output": output, "reward": reward}
    assert finetune(**options, epochs=1) == 0
    said = capsys.readouterr().out
    assert said.count('the prompts are in the key "caption"') == 1
    assert said.count("warning: 1 of the 8 prompts is longer than the 16 tokens") == 1
    first = {n["n"] for _, _, n in SEEN}
    assert resume(output, epochs=2) == 0
    assert len({n["n"] for _, _, n in SEEN}) > len(first) > 1
    for text, negative, beside in SEEN:
        number = beside.pop("n")
        assert not beside and negative == ("blur" if number % 2 else None)
        assert text == ("long " * 20).strip() or text == f"prompt {number}"
    with open(output / "samples" / "evaluation_after.csv", newline="") as file:
        assert {row["prompt"] for row in csv.DictReader(file)} <= {text for text, _, _ in SEEN}


def test_a_run_whose_negative_prompts_changed_is_not_resumed(models, rows, tmp_path, capsys):
    output = tmp_path / "run"
    assert finetune(model=models["sd"], prompts=rows, output=output, epochs=1) == 0
    rows.write_text(rows.read_text().replace("blur", "noise"))
    assert resume(output, epochs=2) == 2
    assert "the prompts of the run" in capsys.readouterr().err


def test_generate_draws_with_the_negative_prompt_of_each_row(models, rows, tmp_path, capsys):
    output = tmp_path / "out"
    small = {"num_inference_steps": 2, "guidance_scale": 3.0, "seed": 5}
    given = words(model=models["sd"], prompts=rows, output=output, negative_prompt="all", **small)
    assert main(["generate", *given]) == 0
    assert "1 of the 8 prompts is longer" in capsys.readouterr().out
    with open(output / "images.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["negative_prompt"] for row in table] == ["", "blur"] * 4
    pipe = StableDiffusionPipeline.from_pretrained(models["sd"], safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "eta": 1.0}
    own = [Prompt("a", "blur"), Prompt("b"), Prompt("c", "")]
    images = draw_images(pipe, own, [1, 2, 3], call | {"negative_prompt": "all"})
    for image, text, seed, negative in zip(
        images, "abc", (1, 2, 3), ("blur", "all", ""), strict=True
    ):
        generator = torch.Generator().manual_seed(seed)
        plain = pipe(text, negative_prompt=negative, generator=generator, output_type="pt", **call)
        torch.testing.assert_close(image, plain.images[0].cpu(), atol=1e-4, rtol=0)


def test_an_empty_negative_prompt_does_not_depend_on_its_neighbours():
    """SDXL takes zeros for it, alone as in a batch with others."""
    pipe = tiny_sdxl()
    family = family_class(type(pipe).__name__)(pipe)
    cpu = torch.device("cpu")
    both = family.encode_negative(["", "blur"], cpu)
    for i, text in enumerate(["", "blur"]):
        alone = family.encode_negative([text], cpu)
        for name, value in alone.items():
            torch.testing.assert_close(both[name][i : i + 1], value, atol=1e-5, rtol=1e-5)
    assert not both["text"][0].any() and both["text"][1].any()


def test_evaluation_prompts_in_another_form(models, rows, tmp_path):
    other = tmp_path / "held.json"
    other.write_text(json.dumps([{"prompt": "an owl", "n": "held"}, {"prompt": "a hen", "n": "h"}]))
    SEEN.clear()
    given = words(**SMALL | {"reward": f"{__name__}:noted", "epochs": 1})
    given += words(model=models["sd"], prompts=rows, eval_prompts=other, output=tmp_path / "run")
    assert main(["finetune", *given]) == 0
    assert {"held", "h"} <= {str(beside["n"]) for _, _, beside in SEEN}
