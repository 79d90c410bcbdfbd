"""Tiny runs of `genpol train` in this process, and what is left of them."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from toy_reach import NAME

from genpol.cli import main
from genpol.runs import checkpoints
from genpol.runs.state_tree import unflatten

TINY: dict[str, Any] = {
    "env": NAME,
    "steps": 36,
    "utd": 1,
    "batch_size": 8,
    "action_chunk": 2,
    "update_after": 6,
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
    "checkpoint_every": 15,
    "replay_capacity": 200,
    "device": "cpu",
    "wandb": "disabled",
}

# Beside TINY: a world model, which is trained and imagines every four steps, and hardly anything
# else, so that many kinds of runs take no time.
MODELLED: dict[str, Any] = {
    "world_model": "mle",
    "ensemble": 3,
    "elites": 2,
    "model_hidden": (8, 8),
    "model_updates": 10,
    "model_batch_size": 16,
    "model_holdout": 0.2,
    "model_every": 4,
    "rollouts_per_step": 2,
    "imagined_capacity": 64,
    "vagram_warmup": 4,
}
BRIEF: dict[str, Any] = {
    "steps": 14,
    "start_steps": 4,
    "eval_every": 14,
    "eval_episodes": 1,
    "log_every": 7,
    "checkpoint_every": 100,
    "pretrain_steps": 2,
}


def words(**options: Any) -> list[str]:
    """`hidden=(8, 8)` as `--hidden 8 8`; True as a bare flag."""
    out = []
    for name, value in options.items():
        out.append(f"--{name.replace('_', '-')}")
        values = value if isinstance(value, (tuple, list)) else (value,)
        out += [] if value is True else [str(v) for v in values]
    return out


def train(**options: Any) -> int:
    """`genpol train` with TINY's options where not given; the exit code."""
    return main(["train", *words(**(TINY | options))])


def resume(folder: Path, **options: Any) -> int:
    return main(["train", "--resume", str(folder), *words(**options)])


def rows(folder: Path, *, table: str = "metrics.csv") -> list[dict[str, str]]:
    """The rows, without what the clock says."""
    with open(folder / table, newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


def summary(folder: Path) -> dict[str, float]:
    numbers = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in numbers.items() if not k.startswith("time/")}


def state(folder: Path) -> dict:
    """All that training goes on from: agent, replay, generators, counters, running episodes."""
    found = checkpoints.latest(folder / "checkpoints")
    assert found is not None
    step, tensors, document = found
    tree = unflatten(tensors, document)
    loop = tree["loop"]
    if "replay" in loop and loop["replay"]["arrays"] is None:
        loop["replay"]["rows"] = replay_rows(folder / "checkpoints", step)
    assert loop["counts"][0] + loop.get("learnt", 0) == step
    return tree


def replay_rows(checkpoints_folder: Path, step: int) -> dict[str, np.ndarray]:
    """What the segments of a checkpoint hold: the rows in use of every array of the replay."""
    document, _ = checkpoints.read_document(checkpoints_folder / f"step-{step:06d}")
    assert document is not None and document.segments is not None
    rows: dict[str, np.ndarray] = {}
    for segment in document.segments.files:
        content = load_file(checkpoints_folder / "segments" / segment.file)
        for name, values in content.items():
            table = name.split("/")[0]
            if name == f"{table}/rows":
                continue
            whole = rows.setdefault(
                name, np.zeros((document.segments.used[table], *values.shape[1:]), values.dtype)
            )
            index = content[f"{table}/rows"]
            whole[index[index < len(whole)]] = values[index < len(whole)]
    return rows


def differences(a, b, path="state") -> list[str]:
    """Where two state trees differ."""
    if isinstance(a, torch.Tensor):
        bits = [x.contiguous().flatten().view(torch.uint8) for x in (a, b)]
        return [] if a.shape == b.shape and torch.equal(*bits) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [path]
        return [d for key in a for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [path]
        return [
            d
            for i, pair in enumerate(zip(a, b, strict=True))
            for d in differences(*pair, f"{path}/{i}")
        ]
    if hasattr(a, "tobytes"):
        return [] if a.tobytes() == b.tobytes() else [path]
    return [] if a == b else [path]


def assert_same_run(one: Path, two: Path) -> None:
    a, b = state(one), state(two)
    assert a.pop("seconds") and b.pop("seconds")
    assert differences(a, b) == []
    assert rows(one) == rows(two)
    assert summary(one) == summary(two)
    files = [sorted(p.relative_to(run) for p in run.glob("*/*.safetensors")) for run in (one, two)]
    assert files[0] == files[1] and files[0]
    assert [
        name for name in files[0] if (one / name).read_bytes() != (two / name).read_bytes()
    ] == []


def interrupt_at(monkeypatch, step: int, number: signal.Signals | None) -> None:
    """A signal, or a death that leaves everything as it is, when row `step` has been logged."""
    from genpol.training.session import Session

    log = Session.log

    def logged(self, at, metrics):
        log(self, at, metrics)
        if at == step and number is None:
            raise KeyboardInterrupt
        if at == step:
            signal.raise_signal(number)

    monkeypatch.setattr(Session, "log", logged)
