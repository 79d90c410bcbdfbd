"""`genpol generate --pairs-from`: best and worst of K, whole or gone on with, what it refuses."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import error_line, words
from tiny_families import FAMILIES, tiny

from diffusion.preferences.source import load_pairs
from genpol.cli import main

CALL = {"num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("few") / "few.txt"
    path.write_text("a cat\na dog\ntwo owls\n")
    return path


def generate(**options) -> int:
    small = {"num_images": 3, "pairs_from": "tiny_rewards:brightness", "seed": 5}
    return main(["generate", *words(**(CALL | small | options))])


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(models, few, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "pairs.jsonl"
    assert generate(model=models["sd"], prompts=few, output=path, batch=3) == 0
    return path


def test_the_best_and_the_worst_of_k_are_kept_with_their_seeds(made, models):
    from diffusion.loading import load_pipeline
    from genpol.commands.generate.drawing import draw_images

    found = rows(made)
    assert [row["prompt"] for row in found] == ["a cat", "a dog", "two owls"]
    pipe, call = load_pipeline(str(models["sd"])), CALL | {"negative_prompt": "", "eta": 1.0}
    for i, row in enumerate(found):
        seeds = [5 + 3 * i + k for k in range(3)]
        images = draw_images(pipe, [row["prompt"]] * 3, seeds, call)
        scores = images.mean((1, 2, 3))
        for side, k in (("chosen", int(scores.argmax())), ("rejected", int(scores.argmin()))):
            assert row[f"{side}_seed"] == seeds[k]
            assert row[f"{side}_score"] == pytest.approx(float(scores[k]), abs=1e-5)
            with Image.open(made.parent / row[side]) as picture:
                kept = np.asarray(picture, np.int64)
            assert np.abs(kept - images[k].permute(1, 2, 0).numpy() * 255).max() <= 1
        assert row["candidates"] == 3 and row["model"] == str(models["sd"])
    names = {path.name for path in (made.parent / "pairs").iterdir()}
    assert names == {f"{i:06d}-{side}.png" for i in range(3) for side in ("chosen", "rejected")}


def test_finetune_reads_what_it_makes(made):
    source = load_pairs(str(made), held_out_fraction=0)
    pair = next(source.train_pairs(0, 1, 0))
    chosen, rejected = pair.images((16, 16))
    assert chosen.mean() > rejected.mean() and pair.prompt.metadata["candidates"] == 3


@pytest.mark.parametrize("how", ["asked", "failed"])
def test_what_is_stopped_goes_on_to_the_same_files(
    how, made, models, few, tmp_path, monkeypatch, capsys
):
    from diffusion.errors import InputError
    from genpol.commands.generate import pairs

    draw, calls = pairs.draw_images, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 2 and how == "asked":
            signal.raise_signal(signal.SIGTERM)
        if len(calls) == 3:
            raise InputError("the reward's server has gone")
        return draw(*args)

    options = {"model": models["sd"], "prompts": few, "output": tmp_path / "pairs.jsonl"}
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "draw_images", stopped)
        assert generate(batch=3, **options) == (143 if how == "asked" else 2)
    assert not (tmp_path / "pairs.jsonl").exists()
    capsys.readouterr()
    assert generate(batch=3, **options, **{"seed": 6}) == 2
    assert "by another --seed" in error_line(capsys.readouterr().err)
    journal = tmp_path / "pairs" / ".unfinished.jsonl"
    with open(journal, "ab") as file:
        file.write(b'{"prompt": "torn')  # as a kill leaves it
    assert generate(batch=3, **options) == 0
    assert files(tmp_path) == files(made.parent)


def test_pairs_already_there_are_not_overwritten(made, models, few, tmp_path, capsys):
    before = files(made.parent)
    assert generate(model=models["sd"], prompts=few, output=made) == 2
    assert "is there already; pass another --output" in error_line(capsys.readouterr().err)
    assert files(made.parent) == before
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "mine.png").write_bytes(b"mine")
    assert generate(model=models["sd"], prompts=few, output=tmp_path / "pairs.jsonl") == 2
    assert "is not empty" in error_line(capsys.readouterr().err)
    assert files(tmp_path) == {"mine.png": b"mine"}


def test_prompts_whose_images_all_tie_are_skipped_and_counted(
    models, few, tmp_path, capsys, monkeypatch
):
    import tiny_rewards

    def ties(images, prompts):
        scores = images.mean((1, 2, 3))
        return scores.where(scores.new_tensor([p != "a dog" for p in prompts]).bool(), 1.0)

    monkeypatch.setattr(tiny_rewards, "brightness", ties)
    output = tmp_path / "pairs.jsonl"
    assert generate(model=models["sd"], prompts=few, output=output) == 0
    assert [row["prompt"] for row in rows(output)] == ["a cat", "two owls"]
    assert "1 prompts skipped, whose images all have one score" in capsys.readouterr().out
    monkeypatch.setattr(tiny_rewards, "brightness", lambda images, p: images.new_ones(len(images)))
    assert generate(model=models["sd"], prompts=few, output=tmp_path / "none.jsonl") == 2
    assert "so there is no pair" in error_line(capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_images": 1}, "--num-images 1 leaves nothing to prefer"),
        ({"num_images": 0}, "--num-images must be at least 1"),
        ({"images_per_prompt": 2}, "--images-per-prompt is not for --pairs-from"),
        ({"best_of": 2}, "--best-of is not for --pairs-from"),
        ({"reward": "jpeg_compressibility"}, "--reward is not for --pairs-from"),
        ({"output": "folder"}, "ends in .jsonl"),
        ({"pairs_from": "jpg_compressibility"}, 'mean "jpeg_compressibility"'),
        ({"prompts": "animals"}, "add --num-prompts"),
    ],
)
def test_bad_input_is_one_line(options, said, models, few, tmp_path, capsys):
    given = {"model": models["sd"], "prompts": few, "output": tmp_path / "pairs.jsonl"} | options
    assert generate(**given) == 2
    assert said in error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_num_images_without_pairs_is_refused(models, few, tmp_path, capsys):
    given = {"model": models["sd"], "prompts": few, "output": tmp_path / "out"}
    assert main(["generate", *words(num_images=3, **given)]) == 2
    assert "--num-images is for --pairs-from" in error_line(capsys.readouterr().err)


def test_a_generator_gives_prompts_of_both_sides_of_its_split():
    from diffusion.prompts.sources import prompt_hash
    from genpol.commands.generate.options import Generate
    from genpol.commands.generate.pairs import read_pair_prompts

    found = read_pair_prompts(Generate(prompts="world", num_prompts=200, seed=3))
    held = [prompt for prompt in found if prompt_hash(prompt) < 0.1 * 2**64]
    assert len(set(found)) == 200 and 5 < len(held) < 40
    assert len(read_pair_prompts(Generate(prompts="animals", num_prompts=45))) == 45


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_draws_by_its_own_call(name):
    from family_images import EXTRA, PROMPTS, SIZES, drawn, policy_of

    from genpol.commands.generate.drawing import draw_images

    call = {"num_inference_steps": 3, "guidance_scale": 1.0, "negative_prompt": ""}
    found = draw_images(
        tiny(name), PROMPTS, [0, 1], call | {"eta": 1.0} | SIZES[name] | EXTRA.get(name, {})
    )
    expected = drawn(policy_of(name, train="full" if name == "pixart" else "lora"))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)
