"""What images and robots refuse of each other and of themselves, in one line and before a run.

A policy without densities, a value that is another pipeline's or another world's, an objective that
needs a sampler with noise, and options of the other world.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import SMALL, error_line, words
from tiny_values import saved_value
from toy_reach import NAME, SPEC, write_demonstrations

from genpol.cli import main
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy
from offline.critics.value import ValueFunction

CHUNKS, SHAPES = SPEC.with_chunk(2), {"state": (3,)}


@pytest.fixture(scope="module")
def made(models, prompts, tmp_path_factory) -> dict[str, str]:
    """Folders by the names that cases use."""
    folder = tmp_path_factory.mktemp("made")
    found = {
        "SD": models["sd"],
        "SDXL": models["sdxl"],
        "PROMPTS": prompts,
        "IMAGE-VALUE": saved_value(models["sd"], folder / "iv"),
        "DEMOS": write_demonstrations(folder / "demos.hdf5"),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"features": 16, "width": 8, "denoising_steps": 2}
        for name, kind, sampler in (
            ("FLOW", "flow", "ddpm"),
            ("GAUSSIAN", "gaussian", "ddpm"),
            ("DDIM", "diffusion", "ddim"),
        ):
            policy = ChunkPolicy(
                kind, CHUNKS, SHAPES, env=NAME, architecture=Architecture(**sizes, sampler=sampler)
            )
            found[name] = policy.save(folder / name)
        critic = ValueFunction(CHUNKS, SHAPES, env=NAME, hidden=(8, 8), ensemble=2, heads="stacked")
        found["CRITIC"] = critic.save(folder / "critic")
    return {name: str(path) for name, path in found.items()}


FINETUNE = " ".join(["finetune", *words(**SMALL), "--prompts PROMPTS"])
TRAIN = (
    "train --data DEMOS --steps 0 --offline-updates 1 --batch-size 4 --action-chunk 2 "
    "--eval-episodes 1 --device cpu --wandb disabled"
)
GENERATE = "generate --prompts PROMPTS --reward jpeg_compressibility --num-inference-steps 4"
STEER = "steer --policy FLOW --episodes 1 --wandb disabled"
OF_IMAGES = "it is a value of an image pipeline, for `genpol generate --value`"
CASES = {
    # -- a policy without densities
    f"{TRAIN} --agent prdp --base GAUSSIAN --value CRITIC": "has no denoising steps",
    f"{TRAIN} --agent grpo --base DDIM --value CRITIC": "samples by ddim, whose steps draw no",
    f"{TRAIN} --agent ddpo --base FLOW --value CRITIC --sampler ode": "a flow draws none",
    # -- an objective that needs a sampler with noise
    f"{FINETUNE} --model tiny-flow --algorithm grpo --sampler ode": "a flow model --sampler cps",
    f"{FINETUNE} --model tiny-flow --algorithm prdp --noise-level 0": "a --noise-level above 0",
    f"{FINETUNE} --model SD --algorithm rtb --eta 0": "DDIM with --eta 1",
    f"{GENERATE} --model SD --value IMAGE-VALUE --resample --eta 0": "copies would stay identical",
    # -- a value of another pipeline, or of the other world
    f"{GENERATE} --model SDXL --value IMAGE-VALUE": "this value is of a StableDiffusionPipeline",
    f"{GENERATE} --model SD --value CRITIC": "it is a value of robots, for `genpol steer`",
    f"{TRAIN} --agent prdp --base FLOW --value IMAGE-VALUE": OF_IMAGES,
    f"{TRAIN} --agent expo --base FLOW --value IMAGE-VALUE": OF_IMAGES,
    f"{STEER} --value IMAGE-VALUE": OF_IMAGES,
    # -- options of the other world
    "value --data DEMOS --num-prompts 3": "--num-prompts is of the value of an image pipeline",
    "value --model SD --critic iql": "--critic is of a critic for robots",
    f"{TRAIN} --agent expo --base FLOW --group-size 4": "--group-size is of agents that fine-tune",
}


@pytest.mark.parametrize("command", CASES)
def test_it_is_one_line_and_leaves_nothing(command, made, tmp_path, capsys):
    given = [made.get(word, word) for word in command.split()]
    output = tmp_path / "run"
    assert main([*given, "--output", str(output)]) == 2
    line = error_line(capsys.readouterr().err)
    assert CASES[command] in line and len(line) < 400, line
    assert not Path(output / "config.json").exists() and not (output / "images.csv").exists()
