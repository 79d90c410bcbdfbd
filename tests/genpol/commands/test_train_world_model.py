"""`genpol train` with a world model, whatever the agent, the model and the critic's bound."""

from __future__ import annotations

import json
import math
import re
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from toy_reach import NAME, write_demonstrations
from training_runs import BRIEF, MODELLED, TINY, resume, rows, state, summary, train

from genpol.agents.deploy import load_expo, load_trained
from genpol.commands.train.inputs import load_inputs
from genpol.commands.train.options import Train
from genpol.commands.train.wiring import make_loop
from offline.critics.lipschitz import layer_sigmas
from offline.critics.value import ValueFunction
from offline.data.batch import IMAGINED
from offline.models.world_model import Prediction, StateLayout

pytestmark = pytest.mark.usefixtures("no_page")

DOCUMENTED = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
LAYOUT = StateLayout({"state": 3})
GAMMA_H = float(torch.tensor(0.99**2))
STATE = {"state": torch.tensor([[0.5, -0.5, 0.2]])}


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data") / "demos.hdf5")


# ------------------------------------------------------------------------------ all that goes along

LOSSES = ("mle", "mse", "vagram")
BOUNDS = ("none", "spectral", "adversarial")
WHOLE = [
    (agent, loss, ensemble, bound)
    for agent in ("expo", "rlpd", "sac")
    for loss, ensemble in [("none", 1), *((loss, count) for loss in LOSSES for count in (1, 3))]
    for bound in BOUNDS
]
# Every two of loss, ensemble and bound, and every agent.
PAIRS = [
    ("expo", "vagram", 3, "none"),
    ("expo", "mle", 1, "spectral"),
    ("rlpd", "mse", 3, "spectral"),
    ("sac", "mle", 3, "adversarial"),
    ("sac", "vagram", 1, "spectral"),
    ("bestofn", "mse", 1, "none"),
    ("idql", "vagram", 1, "adversarial"),
    ("fql", "mle", 3, "none"),
    ("fql", "none", 1, "adversarial"),
    ("dsrl", "mse", 1, "adversarial"),
]


def check_run(data: Path, run: Path, agent: str, loss: str, ensemble: int, bound: str) -> None:
    """One tiny run: trained, evaluated, logged, saved and loaded."""
    options = BRIEF | {"agent": agent, "lipschitz": bound, "lipschitz_bound": 0.7, "output": run}
    if agent != "sac":
        options["data"] = data
    if loss != "none":
        options |= MODELLED | {"world_model": loss, "ensemble": ensemble}
    assert train(**options) == 0
    assert math.isfinite(summary(run)["eval/return"])
    last = rows(run)[-1]
    modelled = {name for name in last if name.startswith(("model/", "imagined/", "vagram/"))}
    assert bool(modelled) == (loss != "none") and not any(last[name] == "" for name in modelled)
    if loss != "none":
        assert last["model/value_error"] and last["imagined/length"] == "1.0"
        assert ("vagram/gradient_norm" in last) == (loss == "vagram")
        assert ("model/calibration_1" in last) == (loss == "mle")
    assert ("lipschitz/penalty" in last) == (bound == "adversarial")
    for name in last:  # `lipschitz/sigma_layer1` stands for those of all layers
        name = re.sub(r"(?<=layer)\d+$", "1", name)
        assert f"`{name}`" in DOCUMENTED or name.startswith(("eval/", "step")), name
    value = ValueFunction.load(run)
    if bound == "spectral":
        assert layer_sigmas(value).max() <= 0.7 * 1.01
    policy = load_trained(run)
    act = policy.sample(STATE, 2, torch.Generator().manual_seed(0))
    assert act.shape == (1, 2, value.spec.chunk, 2) and torch.isfinite(act).all()


@pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: "-".join(map(str, kind)))
def test_pairs(kind, demos, tmp_path):
    check_run(demos, tmp_path / "run", *kind)


def test_those_are_all_pairs():
    kinds = [kind[1:] for kind in PAIRS if kind[1] != "none"]
    for i, j in combinations(range(3), 2):
        choices = (LOSSES, (1, 3), BOUNDS)
        assert {(kind[i], kind[j]) for kind in kinds} == set(product(choices[i], choices[j]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: "-".join(map(str, kind)))
def test_everything(kind, demos, tmp_path):
    check_run(demos, tmp_path / "run", *kind)


# ----------------------------------------------------------------------------------------- offline


def test_an_agent_learns_without_a_step(demos, tmp_path):
    run = tmp_path / "run"
    options = MODELLED | {"data": demos, "steps": 0, "offline_updates": 30, "value_diversity": 1}
    assert train(**options, output=run) == 0
    table = rows(run)
    assert [row["step"] for row in table] == ["0", "6", "12", "18", "24", "30"]
    assert [row["step"] for row in table if row["eval/return"]] == ["0", "12", "24", "30"]
    assert [row["train/updates"] for row in table[1:]] == ["6.0", "12.0", "18.0", "24.0", "30.0"]
    assert all(row["critic/td_loss"] and row["critic/gradient_cosine"] for row in table[1:])
    numbers = summary(run)
    assert (numbers["train/env_steps"], numbers["train/updates"]) == (0, 30)
    assert numbers["train/episodes"] == 0 and math.isfinite(numbers["eval/return"])
    ring = state(run)["loop"]["imagination"]["ring"]["rows"]
    assert len(ring["reward"]) == 64 and set(ring["discount"].tolist()) <= {0.0, GAMMA_H}
    # Now it acts, and learns on.
    assert resume(run, steps=12) == 0
    assert summary(run)["train/env_steps"] == 12
    assert [row["step"] for row in rows(run)][-2:] == ["36", "42"]


# --------------------------------------------------------------------------------- what is imagined


class Exact:
    """The toy itself, with its sparse reward."""

    layout = LAYOUT

    def predict(self, state, act, generator):
        following = state.clone()
        following[:, :2] = (state[:, :2] + 0.25 * act).clamp(-2, 2)
        apart = torch.stack([following[:, 0] - following[:, 2], following[:, 1]], 1)
        over = apart.abs().amax(1) < 0.4
        return Prediction(following, over.float() - 1, over)


def make(output: Path, **options):
    """A loop as `genpol train` makes it."""
    config = Train(**(TINY | BRIEF | MODELLED | {"output": output} | options))
    inputs = load_inputs(config)
    return make_loop(config, inputs, inputs.make_envs())


def test_imagined_transitions_are_in_every_batch(demos, tmp_path):
    loop = make(tmp_path, data=demos, imagined_fraction=0.25)
    counts, sample = [], loop.mixture.sample

    def counted(size, generator=None):
        batch = sample(size, generator)
        ring = loop.imagination._ring._rows
        for state_, act in zip(batch.obs["state"], batch.act, strict=True):
            same = (ring["state"] == state_).all(1) & (ring["act"] == act).all((1, 2))
            counts[-1] += bool(same.any())
        assert int((batch.key == IMAGINED).sum()) == counts[-1]
        return batch

    def one_more(size, generator=None):
        counts.append(0)
        return counted(size, generator)

    loop.mixture.sample = one_more
    loop.run(14)
    assert counts == [2] * 8  # of 8, from the first update on
    assert loop.mixture.counts(8) == {"offline": 4, "online": 2, "imagined": 2}
    loop.envs.close()


def test_branches_begin_where_batches_come_from(demos, tmp_path):
    def shares(name, **options):
        loop = make(tmp_path / name, data=demos, **options)
        loop.envs.close()
        return {share.name: share.fraction for share in loop.imagination.real.shares}

    assert shares("a", imagined_fraction=0.5, offline_fraction=0.125)["offline"] == 0.25
    # Of imagined data alone, too, an agent can learn before its first step.
    assert shares("b", imagined_fraction=1.0, offline_fraction=0.0)["offline"] == 0.5


def true_value(model, state, steps=40, discount=0.9):
    """Sparse return of always going half speed towards the goal, decided every second step."""
    value, alive, weight = torch.zeros(len(state)), torch.ones(len(state), dtype=torch.bool), 1.0
    for step in range(steps):
        if step % 2 == 0:
            act = 0.5 * torch.sign(torch.stack([state[:, 2] - state[:, 0], -state[:, 1]], 1))
        told = model.predict(state, act, None)
        value += torch.where(alive, weight * told.reward, 0.0)
        state, alive, weight = told.next_state, alive & ~told.terminated, weight * discount
    return value


def test_values_are_learnt_from_imagination_alone(tmp_path, monkeypatch):
    """The base is a fixed policy, so its values are known; not one real transition is learnt."""
    monkeypatch.setattr("genpol.commands.train.wiring.make_world_model", lambda *_: Exact())
    loop = make(
        tmp_path,
        agent="bestofn",
        base="black_boxes:Aim",
        num_candidates=1,
        imagined_fraction=1.0,
        offline_fraction=0.0,
        rollout_lengths=(2, 2),
        rollouts_per_step=20,
        imagined_capacity=4000,
        model_every=20,
        batch_size=32,
        hidden=(32, 32),
        discount=0.9,
        lr=3e-3,
        target_rate=0.05,
        start_steps=30,
        utd=4,
    )
    loop.run(100)
    batch = loop.mixture.sample(500, torch.Generator().manual_seed(0))
    assert loop.mixture.counts(32) == {"imagined": 32} and (batch.key == IMAGINED).all()
    at = batch.obs["state"]
    act = 0.5 * torch.sign(torch.stack([at[:, 2] - at[:, 0], -at[:, 1]], 1))
    with torch.no_grad():
        q = loop.agent.critic.target({"state": at}, act[:, None, None].expand(-1, 1, 2, -1))
    error, true = q[..., 0].mean(0) - true_value(Exact(), at), true_value(Exact(), at)
    assert true.std() > 1 and error.abs().mean() < 0.3 * true.std()
    loop.envs.close()


# -------------------------------------------------------------------------------- a black-box base


def test_around_a_black_box(tmp_path):
    """It proposes in imagined states as at the beginning of an episode."""
    from robots.policies.load import load_black_box

    run = tmp_path / "run"
    options = MODELLED | {"base": "black_boxes:Aim", "steps": 24, "rollout_lengths": (2, 2)}
    assert train(**(BRIEF | options), edit_scale=0.01, output=run) == 0
    ring = state(run)["loop"]["imagination"]["ring"]["rows"]
    at, act = ring["state"], ring["act"]
    towards = torch.stack([at[:, 2] - at[:, 0], -at[:, 1]], 1).sign()
    assert len(act) > 20 and ((act - 0.5 * towards[:, None]).abs() <= 0.0101).all()
    assert not (run / "policy").exists()
    spec = ValueFunction.load(run).spec
    base = load_black_box("black_boxes:Aim", trust=False, env_spec=spec, action_chunk=2)
    act = load_expo(run, base=base).sample(STATE, 1, torch.Generator().manual_seed(0))
    assert torch.allclose(act[0, 0], torch.tensor([-0.5, 0.5]), atol=0.0101)
    config = json.loads((run / "config.json").read_text())
    assert config["env"] == NAME and config["world_model"] == "mle"
