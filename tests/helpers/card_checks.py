"""Checks of agents, critics, policies, world models and whole runs on a device that is pretended.

Run as a script, it writes {"check": "" or what went wrong} to the file that it is given.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import toy_bandit as toy
from pretend_card import Card, Watched, pretend_card
from torch import Tensor
from toy_reach import NAME, write_demonstrations
from training_runs import MODELLED, TINY, words

from genpol.agents.make import make_agent
from genpol.cli import main as main_of_genpol
from genpol.commands.serve.command import policy
from genpol.commands.serve.options import Serve
from offline.data.batch import Batch
from offline.learning.agent import Agent

CHECKS: dict[str, Callable[[], None]] = {}
# Beside the agent's name: what makes it take other ways.
AGENTS: dict[str, dict[str, Any]] = {
    "expo": {"agent": "expo"},
    "expo-published": {
        "agent": "expo", "policy": "diffusion", "network": "residual", "entropy_backup": True,
        "adaptive_edit_scale": True, "backup": "decoupled", "subset": 1,
        "lipschitz": "adversarial", "value_diversity": 0.1, "base_filter": "success",
    },
    "expo-two-step": {"agent": "expo", "candidates": "two-step", "denoising_steps": 4},
    "expo-short-diffusion": {
        "agent": "expo", "policy": "diffusion", "candidates": "two-step", "denoising_steps": 4,
        "candidate_dtype": "bfloat16",
    },
    "expo-student": {"agent": "expo", "candidates": "student", "policy": "flow"},
    "expo-noise-filter": {"agent": "expo", "candidates": "noise-filter", "policy": "flow"},
    "expo-spectral": {"agent": "expo", "lipschitz": "spectral", "layer_norm": True},
    "bestofn": {"agent": "bestofn", "policy": "gaussian", "act_select": "softmax"},
    "idql": {"agent": "idql"},
    "fql": {"agent": "fql"},
    "dsrl": {"agent": "dsrl"},
    "sac": {"agent": "sac"},
    "rlpd": {"agent": "rlpd"},
    "bc": {"agent": "bc"},
}  # fmt: skip


def check(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def keep(function: Callable[[], None]) -> Callable[[], None]:
        CHECKS[name] = function
        return function

    return keep


def agent_of(options: dict[str, Any], device: str) -> Agent:
    sizes = {"features": 16, "width": 8, "num_candidates": 3, "denoising_steps": 2, "seed": 3}
    config = toy.settings(**(sizes | options))
    return make_agent(
        config,
        spec=toy.SPEC,
        obs_shapes=toy.SHAPES,
        obs_stats=None,
        env="toy",
        replay_slots=64,
        device=device,
    )


def batches(count: int, rows: int = 8) -> list[Batch]:
    draw = toy.generator(5)
    return [toy.transitions(rows, draw) for _ in range(count)]


def learn(agent: Agent, data: list[Batch], device: str, draw: torch.Generator) -> list[dict]:
    """What updates return, as numbers."""
    found = [
        agent.update_critic(b, draw) | agent.update_policy(b, draw)
        for b in (batch.to(device) for batch in data)
    ]
    return [{key: value.detach().cpu().item() for key, value in row.items()} for row in found]


def close(ours: Any, theirs: Any, what: str, tolerance: float = 1e-4) -> None:
    """Trees of numbers and tensors, wherever they are."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), f"{what}: {sorted(ours)} and {sorted(theirs)}"
        for key in ours:
            close(ours[key], theirs[key], f"{what}/{key}", tolerance)
    elif isinstance(ours, list | tuple):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            close(*pair, f"{what}/{i}", tolerance)
    elif isinstance(ours, Tensor):
        one, two = ours.detach().cpu(), theirs.detach().cpu()
        assert torch.allclose(one.double(), two.double(), tolerance, tolerance), what
    elif isinstance(ours, float):
        same = (
            abs(ours - theirs) <= tolerance * (1 + abs(ours)) or ours != ours and theirs != theirs
        )
        assert same, f"{what}: {ours} and {theirs}"


@contextmanager
def no_waits(watched: Watched) -> Iterator[None]:
    watched.waits.clear()
    yield
    assert not watched.waits, f"the host waits for the device: {dict(watched.waits)}"


def check_agent(options: dict[str, Any]) -> None:
    """The same numbers as on the CPU, no waiting inside an update, and going on elsewhere."""
    data = batches(5)
    host, draw = agent_of(options, "cpu"), toy.generator(1)
    expected = learn(host, data[:3], "cpu", draw)
    obs = toy.states(2, toy.generator(4))
    expected_act = host.acting().sample(obs, 2, toy.generator(7))
    host.evaluating().sample(obs, 1, toy.generator(7))
    with pretend_card() as watched:
        agent, stream = agent_of(options, "card:0"), toy.generator(1)
        close(learn(agent, data[:2], "card:0", stream), expected[:2], "metrics")
        batch = data[2].to("card:0")
        if options.get("lipschitz") != "spectral":  # eigenvalues are checked by PyTorch itself
            with no_waits(watched):
                agent.update_critic(batch, stream)
                agent.update_policy(batch, stream)
        else:
            agent.update_critic(batch, stream)
            agent.update_policy(batch, stream)
        for network in agent.networks():
            for name, tensor in network.state_dict(keep_vars=True).items():
                assert isinstance(tensor, Card) or type(tensor.data) is Card, f"{name} is not there"
        act = agent.acting().sample(obs, 2, toy.generator(7))
        close(act, expected_act, "acting", 1e-3)
        agent.evaluating().sample(obs, 1, toy.generator(7))
        with tempfile.TemporaryDirectory() as folder:
            agent.save(Path(folder))
        on_the_card = on_the_cpu(agent.state_dict())
        # from the card to the CPU, and from the CPU to a card, with the same numbers
        there = agent_of(options | {"seed": 9}, "cpu")
        there.load_state_dict(on_the_card)
        back = agent_of(options | {"seed": 9}, "card:0")
        back.load_state_dict(on_the_cpu(host.state_dict()))
        rest = learn(back, data[3:], "card:0", stream)
    close(on_the_cpu(host.state_dict()), on_the_card, "state", 1e-3)
    close(learn(there, data[3:], "cpu", draw), rest, "after resuming", 1e-3)


def on_the_cpu(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: on_the_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(on_the_cpu(value) for value in tree)
    return tree.detach().cpu().clone() if isinstance(tree, Tensor) else tree


def numbers(folder: Path) -> list[dict[str, float]]:
    """The rows of a run, without what the clock says."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    timed = ("time/", "clone/step_ms")
    return [{k: float(v) for k, v in row.items() if v and not k.startswith(timed)} for row in rows]


@cache
def demonstrations() -> Path:
    return write_demonstrations(Path(tempfile.mkdtemp()) / "demos.hdf5")


def run(command: str, **options: Any) -> Path:
    """A command's run folder."""
    output = Path(tempfile.mkdtemp()) / command
    options = options | {"output": output, "wandb": "disabled"}
    assert main_of_genpol([command, *words(**options)]) == 0
    return output


def check_run(command: str, **options: Any) -> None:
    """A run on the card has the CPU's numbers, and what it began goes on on the CPU."""
    options = {"data": demonstrations(), "log_every": 4, "checkpoint_every": 4} | options
    half = {"steps": options["steps"] // 2}
    there = {"device": "card:0"}
    expected = run(command, **(options | {"device": "cpu"}))
    with pretend_card():
        whole = run(command, **(options | there))
        begun = None if command == "clone" else run(command, **(options | half | there))
    close(numbers(expected), numbers(whole), command, 5e-3)
    if begun is not None:
        resumed = ["--resume", str(begun), "--steps", str(options["steps"]), "--device", "cpu"]
        assert main_of_genpol([command, *resumed]) == 0
        close(numbers(expected)[-1], numbers(begun)[-1], f"{command}, resumed", 5e-3)


SMALL = {"batch_size": 8, "action_chunk": 2}
CLONE = SMALL | {"features": 16, "width": 8, "denoising_steps": 2, "steps": 8}
VALUE = SMALL | {"hidden": (8, 8), "steps": 8}
_LITTLE = {"steps": 16, "eval_every": 16, "checkpoint_every": 16, "agent": "expo", "seed": 1}
_WORLD = MODELLED | {"world_model": "vagram", "start_steps": 4}

CHECKS["clone a diffusion policy"] = lambda: check_run("clone", policy="diffusion", **CLONE)
CHECKS["value by calql"] = lambda: check_run("value", critic="calql", **VALUE)
CHECKS["value by iql"] = lambda: check_run("value", critic="iql", **VALUE)
CHECKS["train with a world model"] = lambda: check_run(
    "train", **(TINY | _WORLD | _LITTLE | {"cache_age": 2, "critic_pretrain": "calql",
    "critic_pretrain_steps": 3})
)  # fmt: skip


CHECKS["train around a black box"] = lambda: check_run(
    "train", **(TINY | _LITTLE | {"base": "black_boxes:Aim", "pretrain_steps": 0})
)


@check("steer and serve")
def check_deployed() -> None:
    """Every arm and rule of steering, and a server's answers."""
    both = {"data": demonstrations(), "log_every": 8, "device": "cpu"}
    clone, value = run("clone", policy="flow", **CLONE, **both), run("value", **VALUE, **both)
    expo = run("train", **(TINY | _LITTLE | {"data": demonstrations()}))
    few = {"env": NAME, "value": value, "episodes": 2, "videos": 0, "num_candidates": 3}
    ways: list[dict[str, Any]] = [
        {"policy": clone, "gate": 0.01, "filtered": clone},
        {"policy": clone, "deadline_ms": 1000},
        {"policy": expo, "margin": 0.1},
        {"policy": clone, "value": (value, value), "tune": demonstrations()},
    ]
    for way in ways:
        here = run("steer", device="cpu", **(few | way))
        with pretend_card():
            there = run("steer", device="card:0", **(few | way))
        if "deadline_ms" not in way:
            assert (here / "episodes.csv").read_text() == (there / "episodes.csv").read_text()
    request = {"state": np.zeros(3, np.float32)}
    for options in ({"value": (str(value),), "num_candidates": 3}, {}):
        answers = []
        for device in ("cpu", "card:0"):
            with pretend_card():
                made, _, _ = policy(Serve(policy=str(clone), device=device, **options))
                session = made()
                for more in ({}, {"num_samples": 2}, {"seed": 3}):
                    steps = session.infer(dict(request | more), 0.0)
                    try:
                        while True:
                            next(steps)
                    except StopIteration as done:
                        answers.append(torch.as_tensor(done.value["actions"]))
        close(answers[:3], answers[3:], "served", 1e-3)


for _name, _options in AGENTS.items():
    CHECKS[f"agent {_name}"] = lambda options=_options: check_agent(options)


# Of the checks, those that take little time and yet every way that there is.
QUICK = [
    f"agent {name}" for name in ("expo-published", "expo-noise-filter", "bestofn", "dsrl", "rlpd")
]


def main(file: str, names: list[str]) -> None:
    found = {}
    for name in QUICK if names == ["quick"] else names or CHECKS:
        run = CHECKS[name]
        try:
            run()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    Path(file).write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # PyTorch's threads for the device have nothing to come back to


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
