"""`genpol bench world-model`: both sides do the same work, and it is counted."""

import json
import sys
from dataclasses import replace

import pytest

from genpol.benchmarks import world_model as bench
from genpol.cli import main
from genpol.commands.bench import world_model as command
from genpol.commands.bench.world_model import BenchWorldModel, run, settings
from offline.errors import InputError

TINY = BenchWorldModel(
    env_steps=4, pieces=1, explore=300, model_every=2, model_epochs=2, rollouts_per_step=5,
    sac_updates=3,
)  # fmt: skip
UPDATES = 2 * 1  # a training: 2 epochs of the 242 of 302 steps that are not held out

PEER = """
import json, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
steps, every = int(words["--steps"]), int(words["--model-every"])
updates = int(words["--sac-updates"]) * steps
print(json.dumps(dict(
    env_steps=steps, cpu_seconds=8.0 * steps, wall_seconds=9.0, sac_updates=updates,
    model_trainings=steps // every, model_updates=2 * steps // every,
    imagined=int(words["--rollouts-per-step"]) * steps,
    seconds=dict(environment=1.0, model=2.0, rollout=3.0, sac=4.0 * updates),
    of_which=dict(model_updates=1.0),
)))
"""


def test_the_settings_are_the_peers():
    train = settings(BenchWorldModel())
    sizes = bench.SIZES
    assert train.ensemble == sizes["--ensemble"] and train.elites == sizes["--elites"]
    assert train.model_hidden == (sizes["--model-width"],) * sizes["--model-layers"]
    assert train.hidden == (sizes["--sac-width"],) * 2 and train.value_ensemble == 2
    assert train.batch_size == train.model_batch_size == sizes["--sac-batch"]
    assert train.imagined_fraction == 1 - sizes["--real"] and train.offline_fraction == 0
    assert train.utd == train.policy_utd == 20 and train.known == ("termination",)
    assert train.rollout_length(train.steps) == 1
    assert train.model_updates == 20 * 17  # 4200 of 5250 steps in minibatches of 256


def test_what_is_counted(tmp_path):
    pytest.importorskip("mujoco")
    run(replace(TINY, output=tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    counts = ("env_steps", "sac_updates", "model_trainings", "model_updates", "imagined")
    assert [summary[f"bench/{name}"] for name in counts] == [4, 12, 2, 2 * UPDATES, 20]
    per_step = (
        3 * summary["bench/sac_update_cpu_s"]
        + summary["bench/model_training_cpu_s"] / 2
        + 5 * summary["bench/rollout_cpu_s"]
    )
    step = summary["bench/env_step_cpu_s"]
    assert 0.3 * step < per_step <= step  # they do not overlap
    assert summary["bench/env_steps_per_cpu_s"] == pytest.approx(1 / step)
    assert not any("peer" in name or "ratio" in name for name in summary)


def test_beside_a_peer(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    monkeypatch.setattr(bench, "PEER", script)
    run(replace(TINY, pieces=2, peer=sys.executable, output=tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("env_steps", "sac_updates", "model_trainings", "model_updates", "imagined"):
        assert summary[f"bench/{name}"] == summary[f"bench/peer_{name}"] > 0, name
    assert summary["bench/peer_env_steps_per_cpu_s"] == 1 / 8
    assert summary["bench/peer_sac_update_cpu_s"] == 4
    assert summary["bench/ratio_env_step"] == pytest.approx(
        8 * summary["bench/env_steps_per_cpu_s"]
    )
    lowest, highest = summary["bench/ratio_lowest"], summary["bench/ratio_highest"]
    assert lowest <= summary["bench/ratio_env_step"] <= highest
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env_steps": 0}, "--env-steps must be at least 1"),
        ({"env_steps": 3}, r"a multiple of --model-every \(2\)"),
        ({"explore": 20}, "--explore must be at least 256"),
        ({"rollouts_per_step": 3}, "divide by the 5 elites"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(InputError, match=message) as found:
        settings(replace(TINY, **options))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("python", "message"), [("nowhere/python", "cannot be run"), (sys.executable, "no result")]
)
def test_a_peer_that_does_not_run(python, message, tmp_path, monkeypatch):
    script = tmp_path / "peer.py"
    script.write_text("import sys\nsys.exit('ModuleNotFoundError: mbrl')")
    monkeypatch.setattr(bench, "PEER", script)
    with pytest.raises(InputError, match=message) as found:
        bench.measure_peer(python, {}, 2)
    assert "\n" not in str(found.value)
    monkeypatch.setattr(bench, "PEER", tmp_path / "none.py")
    with pytest.raises(InputError, match="checkout"):
        bench.measure_peer(sys.executable, {}, 2)


def test_it_is_a_command(capsys):
    assert main(["bench", "world-model", "--help"]) == 0
    assert "--peer" in capsys.readouterr().out
    assert command.BenchWorldModel.__doc__
