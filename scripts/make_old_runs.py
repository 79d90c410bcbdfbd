"""Small run folders of every kind, as another checkout of this code leaves them.

    python -m scripts.make_old_runs --checkout ../before

Writes tests/old_runs anew: one folder for each of RUNS, and numbers.json, which holds what that
checkout computed when it went on with them: resumed copies, steered and served policies. All of it
is the other checkout's work, in a process that imports its packages and no others.
`tests/test_old_runs.py` compares what this tree makes of the same folders.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from scripts.same_numbers import ROOT, Numbers, environment, numbers, words

OUTPUT = ROOT / "tests" / "old_runs"
DATA = "demos.hdf5"

Options = dict[str, Any]
TRAIN: Options = {
    "env": "ToyReach-v0",
    "data": DATA,
    "steps": 18,  # episodes have at most 12: the second is under way
    "update_after": 6,
    "batch_size": 8,
    "action_chunk": 2,
    "features": 16,
    "width": 8,
    "hidden": (8, 8),
    "value_ensemble": 2,
    "subset": 1,
    "num_candidates": 2,
    "denoising_steps": 2,
    "pretrain_steps": 5,
    "eval_every": 12,
    "eval_episodes": 2,
    "log_every": 6,
    "replay_capacity": 40,
}
MODEL: Options = {
    "world_model": "mle",
    "ensemble": 2,
    "elites": 1,
    "model_hidden": (8, 8),
    "model_updates": 5,
    "model_batch_size": 16,
    "model_holdout": 0.2,
    "model_every": 4,
    "rollouts_per_step": 2,
    "imagined_capacity": 32,
    "imagined_fraction": 0.25,
}
CLONE: Options = {
    "data": DATA,
    "steps": 12,
    "batch_size": 16,
    "action_chunk": 2,
    "features": 16,
    "width": 8,
    "denoising_steps": 3,
    "log_every": 6,
}
VALUE: Options = {
    "data": DATA,
    "steps": 12,
    "batch_size": 16,
    "action_chunk": 2,
    "hidden": (8, 8),
    "log_every": 6,
}
FINETUNE: Options = {
    "model": "tiny",
    "epochs": 3,  # but it is stopped after two
    "prompts_per_epoch": 2,
    "images_per_prompt": 2,
    "num_inference_steps": 3,
    "lora_rank": 1,
    "lora_targets": "attention",
    "learning_rate": 1e-2,
    "ema": 0.9,
    "eval_images": 2,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
}

# Each run's command and options; a run may start from one before it.
RUNS: dict[str, tuple[str, Options]] = {
    "finetune": ("finetune", FINETUNE),
    "clone-diffusion": ("clone", CLONE | {"policy": "diffusion"}),
    "clone-flow": ("clone", CLONE | {"policy": "flow"}),
    "clone-gaussian": ("clone", CLONE | {"policy": "gaussian"}),
    "value-calql": ("value", VALUE | {"critic": "calql"}),
    "value-iql": ("value", VALUE | {"critic": "iql"}),
    "train-expo": ("train", TRAIN | {"agent": "expo"}),
    "train-expo-from-clone": (
        "train",
        TRAIN | {"agent": "expo", "base": "clone-flow", "value": "value-calql", "num_envs": 2},
    ),
    "train-expo-student": (
        "train",
        TRAIN
        | {
            "agent": "expo",
            "policy": "diffusion",
            "candidates": "student",
            "cache_age": 6,
            "adaptive_edit_scale": True,
            "backup": "decoupled",
            "critic_pretrain": "calql",
            "critic_pretrain_steps": 4,
            "n_step": 3,
        },
    ),
    "train-expo-vagram": (
        "train",
        TRAIN
        | MODEL
        | {
            "agent": "expo",
            "world_model": "vagram",
            "vagram_warmup": 4,
            "lipschitz": "spectral",
            "offline_updates": 6,
        },
    ),
    "train-bestofn": ("train", TRAIN | {"agent": "bestofn"}),
    "train-bc": ("train", TRAIN | {"agent": "bc"}),
    "train-rlpd": ("train", TRAIN | {"agent": "rlpd"}),
    "train-sac": (
        "train",
        {k: v for k, v in TRAIN.items() if k != "data"}
        | MODEL
        | {"agent": "sac", "start_steps": 4, "utd": 2, "policy_utd": 2},
    ),
    "train-idql": ("train", TRAIN | {"agent": "idql"}),
    "train-fql": ("train", TRAIN | {"agent": "fql"}),
    "train-dsrl": ("train", TRAIN | {"agent": "dsrl"}),
}
RESUMED: dict[str, Options] = {"finetune": {}, "train": {"steps": 36}}
"""What a command's runs are given beside --resume."""
STEERED_BY = "value-calql"
ACTING = tuple(name for name, (command, _) in RUNS.items() if command in ("clone", "train"))
"""Runs that leave a robot policy behind."""
STATES = ([0.5, -0.5, 0.25], [-1.0, 0.75, 0.5], [0.125, 0.0, -0.75])
"""Observations that served policies are asked about, one after the other."""


# ------------------------------------------------------- with whichever code is imported


def genpol(command: str, **options: Any) -> int:
    """`genpol COMMAND` in this process; the exit code."""
    from genpol.cli import main

    given, before = [command, *words(options)], sys.argv
    sys.argv = ["genpol", *given]  # goes into config.json
    try:
        return main(given)
    finally:
        sys.argv = before


@contextmanager
def stopped_after(epoch: int) -> Iterator[None]:
    """SIGTERM to this process when fine-tuning has run that many epochs."""
    from diffusion.finetune import Finetuner

    run_epoch = Finetuner.run_epoch

    def stopping(self, *args):
        metrics = run_epoch(self, *args)
        if self.epoch == epoch:
            signal.raise_signal(signal.SIGTERM)
        return metrics

    Finetuner.run_epoch = stopping
    try:
        yield
    finally:
        Finetuner.run_epoch = run_epoch


def make(name: str) -> None:
    """One of RUNS, in the working directory.

    Raises:
        RuntimeError: the command failed.
    """
    command, options = RUNS[name]
    device = {"device": "cpu", "wandb": "disabled"}
    with stopped_after(2) if command == "finetune" else nullcontext():
        code = genpol(command, **options, **device, output=name)
        if code not in ((0, 143) if command == "finetune" else (0,)):  # which is stopped on its way
            raise RuntimeError(f"{name} failed")
    # A page of pictures and the pictures themselves: nothing goes on from them.
    (Path(name) / "index.html").unlink(missing_ok=True)
    shutil.rmtree(Path(name) / "samples", ignore_errors=True)


def resumed(name: str) -> Numbers:
    """What the run in the working directory left after it went on; it is changed.

    Raises:
        RuntimeError: the command failed.
    """
    command = RUNS[name][0]
    if genpol(command, resume=name, **RESUMED[command]):
        raise RuntimeError(f"{name} could not be resumed")
    return numbers(Path(name))


def steered(name: str, folder: Path) -> Numbers:
    """Outcomes of the policy in the working directory steered by STEERED_BY; a run in `folder`.

    Raises:
        RuntimeError: the command failed.
    """
    options = {"episodes": 2, "num_candidates": 3, "temperature": 0, "videos": 0}
    if genpol("steer", policy=name, value=STEERED_BY, **options, wandb="disabled", output=folder):
        raise RuntimeError(f"{name} could not be steered")
    return numbers(folder)


def served(name: str) -> Numbers:
    """Actions that a robot gets for STATES from the policy in the working directory, in order."""
    import numpy as np
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    from genpol.commands.serve.command import make_server
    from genpol.commands.serve.options import Serve

    found: Numbers = {}
    with make_server(Serve(policy=name, port=0)) as server:
        robot = WebsocketClientPolicy("127.0.0.1", int(server.address.split(":")[-1]))
        for i, state in enumerate(STATES):
            actions = robot.infer({"state": np.array(state, np.float32)})["actions"]
            for place, value in np.ndenumerate(actions):
                found[f"{i}/" + "/".join(map(str, place))] = float(value)
        robot._ws.close()
    return found


def make_all() -> None:
    """Every run and numbers.json in the working directory, with the packages that are imported."""
    from toy_reach import write_demonstrations

    write_demonstrations(Path(DATA))
    for name in RUNS:
        make(name)
    scratch = Path("scratch")
    expected: dict[str, dict[str, Numbers]] = {"resumed": {}, "steered": {}, "served": {}}
    for name in ACTING:
        expected["served"][name] = served(name)
        expected["steered"][name] = steered(name, scratch / "steered" / name)
    shutil.copytree(".", scratch / "runs", ignore=shutil.ignore_patterns("scratch"))
    os.chdir(scratch / "runs")
    for name, (command, _) in RUNS.items():
        if command in RESUMED:
            expected["resumed"][name] = resumed(name)
    os.chdir("../..")
    shutil.rmtree(scratch)
    Path("numbers.json").write_text(json.dumps(expected, indent=0) + "\n", "utf-8")


# ---------------------------------------------------------------------------- the script


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkout", type=Path, help="whose code makes the runs")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        make_all()
        return 0
    checkout = given.checkout.resolve()
    helpers = next((checkout / "tests").rglob("toy_reach.py")).parent
    output = given.output.resolve()
    readme = output / "README.md"
    text = readme.read_bytes() if readme.is_file() else None
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    if text is not None:
        readme.write_bytes(text)
    # `scripts` has no __init__.py: this file is found beside the packages of the other checkout.
    path = os.pathsep.join(map(str, (checkout, helpers, ROOT)))
    return subprocess.run(
        [sys.executable, "-P", "-m", "scripts.make_old_runs", "--inside"],
        cwd=output,
        env=environment(checkout) | {"PYTHONPATH": path},
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
