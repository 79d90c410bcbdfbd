"""World models in `genpol train`: the documented commands, their defaults, what is refused, and
the page of such a run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from toy_reach import NAME, write_demonstrations
from training_runs import BRIEF, MODELLED, TINY, train

from genpol.agents.config import IMAGINING, SAC_IMAGINING, SAC_USUAL
from genpol.cli import main
from genpol.commands.parsing import parse
from genpol.commands.train.options import Train
from genpol.reports.charts import read_log
from genpol.runs.metrics import MetricsCsv
from genpol.training.curves import model_charts
from genpol.training.record import commands, read_run
from genpol.training.report import panels, write_page

ON = {"world_model": "mle"}


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data") / "demos.hdf5")


def refused(capsys, **options) -> str:
    """The one error line; nothing may have been written."""
    assert train(**options) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert not (Path(options["output"]) / "config.json").exists()
    return line


# ------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"imagined_fraction": 0.5}, "--imagined-fraction 0.5 needs a --world-model"),
        (ON | {"imagined_fraction": 0}, "trained and never used: --imagined-fraction is 0"),
        (
            ON | {"offline_fraction": 0.7, "imagined_fraction": 0.4},
            "--imagined-fraction must be at most 1 together with --offline-fraction, received 0.4",
        ),
        (ON | {"known": "reward"}, "--known reward is the environment's own reward"),
        (ON | {"known": "termination"}, f'the termination of "{NAME}" is not known as a rule'),
        ({"world_model": "simulator"}, f'"{NAME}" cannot be put into the state that it observes'),
        (ON | {"agent": "bc"}, "--world-model mle is for values, and --agent bc learns none"),
        ({"agent": "bc", "lipschitz": "spectral"}, "--lipschitz spectral is for values"),
        (ON | {"rollout_lengths": (3, 1)}, "--rollout-lengths must be two lengths, 1 <= first"),
        (ON | {"rollout_schedule": (3, 1)}, "--rollout-schedule must be two steps"),
        (ON | {"ensemble": 0}, "--ensemble must be at least 1"),
        (ON | {"model_holdout": 1}, "--model-holdout must be below 1"),
        ({"offline_updates": -1}, "--offline-updates must be at least 0"),
        ({"lipschitz_bound": 0}, "--lipschitz-bound must be above 0"),
        ({"value_diversity": 1, "value_ensemble": 1}, "--value-ensemble must be at least 2"),
        ({"agent": "sac", "base": "absent"}, "--agent sac has no base policy"),
    ],
)
def test_what_is_refused_is_one_line(options, named, tmp_path, capsys):
    assert named in refused(capsys, **{"output": tmp_path / "run"} | options)


def test_fewer_than_no_distractors(tmp_path, capsys):
    arguments = ["train", "--env", NAME, "--output", str(tmp_path), "--distractors", "-1"]
    assert main(arguments) == 2
    assert "--distractors must be at least 0, received -1" in capsys.readouterr().err


def test_distractors_that_the_data_lacks(demos, tmp_path, capsys):
    line = refused(capsys, data=demos, distractors=3, output=tmp_path / "run")
    assert "--distractors adds an observation that is not among those learnt from" in line


def test_a_model_sees_no_images(tmp_path, capsys):
    pytest.importorskip("metaworld")
    options = {"env": "metaworld/push-v3", "image_keys": "corner", "output": tmp_path / "run"}
    line = refused(capsys, **(ON | options))
    assert 'a world model predicts vectors, and observation "corner" is (64, 64, 3)' in line


def test_a_critic_with_another_bound(tmp_path, capsys, no_page):
    spectral = {"lipschitz": "spectral", "lipschitz_bound": 0.5}
    free, bounded, new = (tmp_path / name for name in ("free", "bounded", "new"))
    assert train(steps=0, output=free) == 0
    assert train(steps=0, output=bounded, **spectral) == 0
    line = refused(capsys, value=free, output=new, **spectral)
    assert "has layers without a bound, --lipschitz spectral needs 0.5: go on without" in line
    line = refused(capsys, value=bounded, output=new)
    assert "has the bound 0.5, --lipschitz none needs none: go on with --lipschitz spectral" in line
    assert train(value=bounded, steps=0, output=new, **spectral) == 0


def test_a_critic_with_layer_norm_where_there_should_be_none(tmp_path, capsys, no_page):
    usual, plain, new = (tmp_path / name for name in ("usual", "plain", "new"))
    assert train(steps=0, output=usual) == 0
    assert train(steps=0, output=plain, no_layer_norm=True) == 0
    line = refused(capsys, value=usual, output=new, no_layer_norm=True)
    assert "--value has layers with LayerNorm: go on with --layer-norm, or drop --value" in line
    line = refused(capsys, value=plain, output=new)
    assert "without LayerNorm: go on with --no-layer-norm" in line
    assert train(value=plain, steps=0, output=new, no_layer_norm=True) == 0


def test_too_little_to_learn_a_model_from(tmp_path, capsys):
    options = MODELLED | BRIEF | {"update_after": 1, "start_steps": 0, "output": tmp_path / "run"}
    assert train(**options) == 2
    assert "steps are too few to train a world model" in capsys.readouterr().err


def test_offline_without_data(tmp_path, capsys):
    assert train(**(MODELLED | {"offline_updates": 9}), output=tmp_path / "run") == 2
    assert "nothing to learn from yet" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- commands


def parsed(text: str) -> Train:
    words = text.split()[2:]
    config = parse(Train, words, "genpol train")
    config.check()
    return config


def test_the_commands_to_the_letter():
    one = parsed(
        "genpol train --agent sac --env Hopper-v5 --world-model mle --ensemble 7 --steps 20000 "
        "--seed 0 --output runs/mbpo"
    )
    assert (one.world_model, one.ensemble, one.elites, one.steps) == ("mle", 7, 5, 20_000)
    for name, value in (SAC_USUAL | SAC_IMAGINING).items():
        assert getattr(one, name) == value, name
    assert one.offline_fraction == 0 and one.model_hidden == (200,) * 4
    two = parsed(
        "genpol train --agent sac --env Hopper-v5 --world-model vagram --model-hidden 64 64 "
        "--distractors 20"
    )
    assert (two.world_model, two.model_hidden, two.distractors) == ("vagram", (64, 64), 20)
    three = parsed(
        "genpol train --agent sac --env Hopper-v5 --world-model mle --ensemble 1 "
        "--lipschitz spectral --lipschitz-bound 1.0"
    )
    assert (three.ensemble, three.lipschitz, three.lipschitz_bound) == (1, "spectral", 1.0)
    four = parsed(
        "genpol train --agent expo --env metaworld/pick-place-v3 --data demos.hdf5 "
        "--world-model vagram"
    )
    assert (four.action_chunk, four.offline_fraction) == (4, 0.5)
    assert {name: getattr(four, name) for name in IMAGINING} == IMAGINING
    assert parsed("genpol train --env x").imagined_fraction == 0


def test_what_is_usual_gives_way_to_what_is_said():
    given = parsed("genpol train --world_model=mse --agent=sac --env x --utd 3 --action-chunk 2")
    assert (given.utd, given.policy_utd, given.action_chunk) == (3, 10, 2)
    assert given.imagined_fraction == SAC_IMAGINING["imagined_fraction"]
    last = parsed("genpol train --agent sac --agent expo --env x")
    assert last.value_ensemble == Train().value_ensemble
    resumed = parsed("genpol train --resume run --agent sac --world-model mle")
    assert resumed.utd == Train().utd  # counts as not said


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "--world-model mle --ensemble 7",
        "--world-model vagram --model-hidden 64 64 --distractors 20",
        "--world-model mle --ensemble 1 --lipschitz spectral --lipschitz-bound 1.0",
        "--world-model simulator --value-ensemble 10 --value-diversity 1",
        "--world-model mse --known termination",
    ],
)
def test_the_commands_start(text, tmp_path):
    """As they are, but for how long."""
    pytest.importorskip("mujoco")
    torch.set_num_threads(1)
    short = "--steps 60 --start-steps 30 --update-after 50 --eval-episodes 1 --model-updates 20"
    short += f" --utd 1 --policy-utd 1 --rollouts-per-step 1 --wandb disabled --output {tmp_path}"
    assert main(["train", *f"--agent sac --env Hopper-v5 {text} {short}".split()]) == 0


# --------------------------------------------------------------------------------------------- page


def test_the_page_shows_the_model_and_the_bound(demos, tmp_path):
    run = tmp_path / "run"
    options = {"data": demos, "lipschitz": "spectral", "offline_updates": 14, "steps": 7}
    assert train(**(BRIEF | MODELLED | options), update_after=1, output=run) == 0
    html = {panel.title: panel.html for panel in panels(run)}
    assert "updates, then environment steps" in html["World model and critic"]
    assert "after 14 updates before the first step and 7 environment steps" in html["Result"]
    settings = html["Settings, cost and commands"]
    assert "<td>7 of 7</td>" in settings and "<td>14 of 14</td>" in settings
    assert "<td>mle, 3 of 8 x 8 units</td>" in settings and "<td>spectral</td>" in settings
    assert model_charts(read_log(run / "metrics.csv"))[:4] == b"\x89PNG"
    assert write_page(run).exists()


def test_without_a_model_nothing_is_drawn_of_it(tmp_path):
    table = MetricsCsv(tmp_path / "metrics.csv")
    for step in range(3):
        table.log(step, {"critic/q_data": 1.0})
    table.close()
    assert model_charts(read_log(tmp_path / "metrics.csv")) is None


def test_the_command_makes_the_same_run_again(tmp_path, no_page):
    """Also where it differs from what is usual for its agent, by being the general default."""
    options = MODELLED | {"agent": "sac", "distractors": 2, "steps": 0, "policy_utd": 1}
    run = tmp_path / "run"
    assert train(**options, output=run) == 0
    line = commands(read_run(run)).split("\ngenpol")[0].replace("\\\n", " ")
    assert "--utd 1" in line and "--distractors 2" in line and "--reward" not in line
    words = shlex.split(line)[2:]
    again = parse(Train, words, "genpol train")
    for name, value in (TINY | options).items():
        if name not in ("eval_every", "eval_episodes", "device", "wandb"):
            assert getattr(again, name) == value, name
