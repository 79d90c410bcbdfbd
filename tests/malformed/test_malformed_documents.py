"""Seeded malformed documents and weights: of models, and of runs that are to be resumed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from malformed import byte_variants, json_variants, judged, refused

from genpol.agents.deploy import load_edit, load_trained
from genpol.policies.policy import load_policy
from genpol.runs.resuming import restored
from offline.critics.value import ValueFunction
from offline.model_files import HASH

pytestmark = pytest.mark.slow

OLD = Path(__file__).parent.parent / "old_runs"
MODELS: dict[str, tuple[str, str, str, Callable[[Path], object]]] = {
    "clone": ("clone-flow/policy", "policy.json", "policy.safetensors", load_policy),
    "value": ("value-calql/value", "config.json", "value.safetensors", ValueFunction.load),
    "edit": ("train-expo/edit", "edit.json", "edit.safetensors", load_edit),
    "actor": ("train-rlpd/policy", "policy.json", "policy.safetensors", load_trained),
    "noise": ("train-dsrl", "policy/policy.json", "policy/policy.safetensors", load_trained),
}


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def spoilt_copy(name: str, tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "spoilt", ignore_errors=True)
    return shutil.copytree(OLD / name, tmp_path / "spoilt")


@pytest.mark.parametrize("kind", MODELS)
def test_documents_of_models(kind: str, tmp_path: Path) -> None:
    source, config, _, load = MODELS[kind]
    document = json.loads((OLD / source / config).read_text())
    refused(lambda: load(OLD / source), False, "as it was")
    for i, text in enumerate(json_variants(document, seed=len(kind), count=40)):
        folder = spoilt_copy(source, tmp_path)
        (folder / config).write_text(text)
        refused(lambda folder=folder: load(folder), i < 8 or None, text)


@pytest.mark.parametrize("kind", MODELS)
def test_weights(kind: str, tmp_path: Path) -> None:
    source, config, weights, load = MODELS[kind]
    good = (OLD / source / weights).read_bytes()
    tensors = safetensors.torch.load(good)
    name = sorted(tensors)[0]
    first = tensors[name]
    variants: dict[str, bytes] = {
        what: safetensors.torch.save(changed)
        for what, changed in {
            "missing": {k: v for k, v in tensors.items() if k != name},
            "unknown": tensors | {"x" * 5000: first.clone()},
            "another shape": tensors | {name: torch.zeros(3, 5, 7)},
            "another dtype": tensors | {name: first.to(torch.int64)},
            "halves": tensors | {name: first.to(torch.float16)},
            "not finite": tensors | {name: torch.full_like(first, float("nan"))},
            "none": {},
        }.items()
    }
    canary = tmp_path / "canary"
    variants["pickle"] = pickle.dumps(Canary(canary))
    for what, data in variants.items():
        folder = spoilt_copy(source, tmp_path)
        document = json.loads((folder / config).read_text())
        document.pop(HASH, None)
        (folder / config).write_text(json.dumps(document))
        (folder / weights).write_bytes(data)
        refused(lambda folder=folder: load(folder), True, f"{kind} {what}")
    assert not canary.exists()
    for data in byte_variants(good, seed=0, count=12):
        folder = spoilt_copy(source, tmp_path)
        (folder / weights).write_bytes(data)
        refused(lambda folder=folder: load(folder), None, f"{kind} bytes")


def runs() -> dict[str, tuple[str, Any, Any]]:
    from genpol.commands.finetune.command import RESUMABLE
    from genpol.commands.finetune.options import Finetune
    from genpol.commands.train.command import CHANGEABLE
    from genpol.commands.train.options import Train

    return {
        "train-expo": ("train", Train, CHANGEABLE),
        "finetune": ("finetune", Finetune, RESUMABLE),
    }


@pytest.mark.parametrize("name", ["train-expo", "finetune"])
def test_configurations(name: str, tmp_path: Path) -> None:
    command, options, changeable = runs()[name]
    document = json.loads((OLD / name / "config.json").read_text())
    known = {f.name for f in fields(options)}

    def resume(text: str) -> None:
        (tmp_path / "config.json").write_text(text)
        restored(options(resume=tmp_path), command, changeable)

    refused(lambda: resume(json.dumps(document)), False, "as it was")
    for i, text in enumerate(json_variants(document, seed=0, count=60)):
        refused(lambda text=text: resume(text), i < 8 or None, text)
    for key in sorted(known & set(document)):
        for value in ({"a": None}, [[1], "two"], "x" * 100_000 if key == "seed" else {}):
            text = json.dumps(document | {key: value})
            refused(lambda text=text: resume(text), True, f"{key}: {str(value)[:60]}")


@pytest.mark.parametrize("name", ["train-expo", "finetune"])
def test_resuming(name: str, tmp_path: Path) -> None:
    folder = spoilt_copy(name, tmp_path)
    document = json.loads((folder / "config.json").read_text())
    for text in json_variants(document, seed=0, count=8):
        (folder / "config.json").write_text(text)
        command = document["command"]
        judged([command, "--resume", str(folder)], True, tmp_path / "out", text)
