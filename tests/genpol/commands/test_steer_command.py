"""`genpol steer`, from collecting to the page, on few and short episodes; and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest

from genpol.cli import main
from genpol.reports.stats import wilson

pytest.importorskip("metaworld")

ENV = "metaworld/reach-v3"
QUICK = ["--episodes", "3", "--max-steps", "8", "--videos", "0", "--wandb", "disabled"]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Demonstrations, a clone and a value function, each barely trained."""
    folder = tmp_path_factory.mktemp("steer")
    demos = folder / "demos.hdf5"
    collect = ["--episodes", "6", "--sloppy-fraction", "0.5", "--seed", "1000"]
    assert main(["collect", "--env", ENV, *collect, "--output", str(demos)]) == 0
    common = ["--data", str(demos), "--steps", "10", "--wandb", "disabled"]
    small = ["--features", "32", "--width", "16"]
    clone = ["clone", "--policy", "flow", *common, *small]
    assert main([*clone, "--output", str(folder / "clone")]) == 0
    value = ["value", "--critic", "iql", *common, "--hidden", "16", "16"]
    assert main([*value, "--output", str(folder / "value")]) == 0
    return folder


@pytest.fixture(scope="module")
def steered(work) -> Path:
    words = ["--policy", str(work / "clone"), "--value", str(work / "value"), "--env", ENV]
    filtered = ["--filtered", str(work / "clone"), "--num-candidates", "4"]
    output = work / "steered"
    films = [*QUICK[:-4], "--videos", "1", "--wandb", "disabled"]
    assert main(["steer", *words, *filtered, *films, "--output", str(output)]) == 0
    return output


def test_the_summary_has_every_arm_with_its_interval(steered):
    summary = json.loads((steered / "summary.json").read_text())
    for arm in ("base", "steered", "mode", "random", "filtered"):
        share = summary[f"steer/success_{arm}"]
        low, high = wilson(round(3 * share), 3)
        assert summary[f"steer/success_{arm}_low"] == pytest.approx(low)
        assert summary[f"steer/success_{arm}_high"] == pytest.approx(high)
    assert 0 <= summary["steer/p_value"] <= 1
    assert math.isfinite(summary["steer/latency_ratio"]) and summary["steer/latency_ratio"] > 0


def test_every_arm_faces_the_same_initial_states(steered):
    with open(steered / "episodes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    states = {arm: [r["initial_state"] for r in rows if r["arm"] == arm] for arm in
              ("base", "steered", "mode", "random", "filtered")}  # fmt: skip
    assert len(states["base"]) == 3
    assert all(found == states["base"] for found in states.values())
    # The filtered clone here is the base itself: same states and same noise, same episodes.
    told = {arm: [r["return"] for r in rows if r["arm"] == arm] for arm in ("base", "filtered")}
    assert told["base"] == told["filtered"]


def test_the_page_and_the_film_are_there(steered):
    assert (steered / "videos" / "episode-000.mp4").stat().st_size > 1000
    page = (steered / "index.html").read_text()
    assert "Success of every arm" in page and "data:video/mp4" in page


def test_two_values_and_films_for_wandb(work):
    """Two values composed with weights; the film is among what wandb stored."""
    words = ["--policy", str(work / "clone"), "--value", str(work / "value"), str(work / "value")]
    words += ["--value-weights", "2", "1", "--num-candidates", "3", "--arms", "base"]
    few = ["--episodes", "2", "--max-steps", "8", "--videos", "1", "--wandb", "offline"]
    output = work / "composed"
    assert main(["steer", *words, *few, "--output", str(output)]) == 0
    assert list((output / "wandb").rglob("*.mp4")) or list((output / "wandb").rglob("*.gif"))


def test_one_candidate_is_the_base_policy(work):
    words = ["--policy", str(work / "clone"), "--value", str(work / "value")]
    output = work / "one"
    assert main(["steer", *words, "--num-candidates", "1", *QUICK, "--output", str(output)]) == 0
    with open(output / "episodes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    told = {arm: [r["return"] for r in rows if r["arm"] == arm] for arm in ("base", "steered")}
    assert told["base"] == told["steered"]


def test_any_callable_in_the_environments_units(work, monkeypatch, capsys):
    """The black box by name; it always proposes the same, and the command says so."""
    (work / "my_robot.py").write_text(
        "import numpy as np\ndef act(obs):\n    return np.full((4, 4), 0.5, np.float32)\n"
    )
    monkeypatch.chdir(work)
    words = ["--policy", "my_robot:act", "--value", str(work / "value"), "--num-candidates", "3"]
    output = work / "callable"
    with pytest.warns(UserWarning, match="all 3 proposals are identical"):
        steps = ["--max-steps", "16"]
        assert main(["steer", *words, *QUICK, *steps, "--output", str(output)]) == 0
    assert "all 3 proposals are identical" in (output / "index.html").read_text()
    assert "a deterministic head" in capsys.readouterr().out


def test_temperature_and_gate_are_tuned_on_held_out_data(work, capsys):
    words = ["--policy", str(work / "clone"), "--value", str(work / "value"), "--env", ENV]
    tune = ["--tune", str(work / "demos.hdf5"), "--num-candidates", "4", "--arms", "base"]
    output = work / "tuned"
    assert main(["steer", *words, *tune, *QUICK, "--output", str(output)]) == 0
    config = json.loads((output / "config.json").read_text())
    assert f"temperature {config['temperature']:g}" in capsys.readouterr().out


def refused(capsys, words: list[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    return told[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "metaworld/pick-plac-v3"], 'Did you mean "metaworld/pick-place-v3"'),
        (["--env", "metaworld/push-v3"], "metaworld/reach-v3"),
        (["--env", "Hopper-v5", "--any-task"], '"Hopper-v5" does not say when its task'),
        (["--num-candidates", "0"], "--num-candidates must be at least 1"),
        (["--temperature", "-1"], "--temperature must be at least 0"),
        (["--margin", "-1"], "--margin must be at least 0"),
        (["--value-weights", "1", "2"], "2 --value-weights for 1 values"),
        (["--policy", "ws://127.0.0.1:9"], "127.0.0.1:9"),
        (["--policy", "nowhere"], "nowhere"),
        (["--policy", "robomimc:model.pth"], 'Did you mean "robomimic"'),
        (["--policy", "robomimic:model.pth"], "there is no such file"),
        (["--value", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(work, capsys, flags, message):
    words = ["steer", "--policy", str(work / "clone"), "--value", str(work / "value"), *QUICK]
    output = work / "refused"
    assert message in refused(capsys, [*words, *flags, "--output", str(output)])
    assert not output.exists()


def test_a_critic_fed_other_statistics_is_refused(work, capsys):
    """As after mixing up two robots' files: the clone says its actions are ten times as large."""
    import shutil

    wrong = work / "wrong"
    shutil.copytree(work / "clone" / "policy", wrong, dirs_exist_ok=True)
    saved = json.loads((wrong / "policy.json").read_text())
    saved["spec"]["low"], saved["spec"]["high"] = [-10.0] * 4, [10.0] * 4
    (wrong / "policy.json").write_text(json.dumps(saved))
    words = ["steer", "--policy", str(wrong), "--value", str(work / "value"), *QUICK]
    told = refused(capsys, [*words, "--output", str(work / "refused")])
    assert "dimension 0" in told and "[-10, 10]" in told and "[-1, 1]" in told


def test_a_pickled_checkpoint_needs_trust_and_says_why(work, capsys):
    (work / "model.pth").write_bytes(b"not even a pickle")
    words = ["steer", "--policy", f"robomimic:{work / 'model.pth'}", "--value", str(work / "value")]
    told = refused(capsys, [*words, *QUICK, "--output", str(work / "refused")])
    assert "--trust" in told and "code" in told


def test_a_dataset_without_successes_is_refused_for_a_value(work, capsys, tmp_path):
    demos = tmp_path / "failures.hdf5"
    few = ["--episodes", "2", "--max-steps", "6", "--output", str(demos)]
    assert main(["collect", "--env", "metaworld/pick-place-v3", *few]) == 0
    words = ["value", "--data", str(demos), "--steps", "1", "--output", str(tmp_path / "v")]
    assert "success" in refused(capsys, [*words, "--wandb", "disabled"])
    assert not (tmp_path / "v").exists() or not list((tmp_path / "v").glob("*.safetensors"))


def test_noise_and_layouts_repeat_with_the_seed(work):
    words = ["--policy", str(work / "clone"), "--value", str(work / "value"), "--arms", "base"]
    returns = []
    for name in ("again1", "again2"):
        assert main(["steer", *words, *QUICK, "--output", str(work / name)]) == 0
        with open(work / name / "episodes.csv", newline="") as file:
            returns.append([float(r["return"]) for r in csv.DictReader(file)])
    assert np.array_equal(*returns)


def test_what_a_signal_stops_keeps_the_episodes_that_ended(
    work, steered, tmp_path, monkeypatch, capsys
):
    """Two of three arms' episodes are over, and one of the third arm's three."""
    from genpol.steering import paired_episodes

    words = ["--policy", str(work / "clone"), "--value", str(work / "value"), "--env", ENV]
    words += ["--filtered", str(work / "clone"), "--num-candidates", "4", "--parallel", "1"]
    run_batch, calls = paired_episodes._run_batch, []

    def stopped(*args):
        run_batch(*args)
        calls.append(args)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(paired_episodes, "_run_batch", stopped)
    output = tmp_path / "run"
    assert main(["steer", *words, *QUICK, "--output", str(output)]) == 143
    said = f"stopped after 7 of 15 episodes, which are in {output / 'episodes.csv'}"
    assert said in capsys.readouterr().out
    found = (output / "episodes.csv").read_text().splitlines()
    assert len(found) == 1 + 7 and [line.split(",")[0] for line in found[-2:]] == [
        "steered",
        "mode",
    ]
    assert not (output / "summary.json").exists() and (output / "config.json").exists()
    capsys.readouterr()
    assert main(["steer", *words, *QUICK, "--output", str(output)]) == 2
    assert "unfinished run" in capsys.readouterr().err


def test_stopped_before_an_episode_has_ended_gives_the_folder_back(work, tmp_path, monkeypatch):
    from genpol.commands.steer import command

    def stopped(config, arms, new_env, stop, after):
        signal.raise_signal(signal.SIGINT)
        return {}, 3

    monkeypatch.setattr(command, "episodes", stopped)
    words = ["--policy", str(work / "clone"), "--value", str(work / "value"), "--env", ENV]
    assert main(["steer", *words, *QUICK, "--output", str(tmp_path / "run")]) == 130
    assert list((tmp_path / "run").iterdir()) == []
