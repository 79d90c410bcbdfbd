"""Several --data: weights, labels of each, and what a run remembers of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_data import ListEpisodes, episode, line_data, spec

from genpol.cli import main
from genpol.commands.parsing import gathered, parse
from genpol.commands.serve.options import Serve
from genpol.commands.train.options import Train
from genpol.commands.value.options import Value
from offline.critics.value import ValueFunction

QUICK = [
    "--steps", "3", "--hidden", "8", "8", "--batch-size", "8", "--action-chunk", "2",
    "--device", "cpu", "--wandb", "disabled",
]  # fmt: skip


def labelled(_):
    return line_data(6)


def unlabelled(_):
    return ListEpisodes([episode(8, seed=i) for i in range(3)], spec())


def value(*words) -> int:
    return main(["value", *QUICK, *map(str, words)])


LABELLED, BARE = "test_several_data:labelled@x", "test_several_data:unlabelled@x"


def test_a_value_of_two_datasets(tmp_path, capsys):
    both = ["--data", LABELLED, "--data", BARE, "--success", "data", "--success", "all"]
    run = tmp_path / "run"
    assert value(*both, "--data-weights", 3, 1, "--output", run) == 0
    stored = json.loads((run / "config.json").read_text())
    assert stored["data"] == [LABELLED, BARE] and stored["data_weights"] == [3, 1]
    assert ValueFunction.load(run).meta["data"] == [LABELLED, BARE]
    known = sum(one.success for one in line_data(6))
    assert ValueFunction.load(run).meta["successes"] == known + 3
    assert main(["value", "--resume", str(run), "--steps", "5"]) == 0
    assert ValueFunction.load(run).meta["steps"] == 5
    capsys.readouterr()
    assert value(*both, "--data-weights", 1, 1, "--resume", run) == 2
    assert "--data-weights 1.0 1.0 differs from 3.0 1.0" in capsys.readouterr().err
    # One dataset is written as ever, and read so.
    one = tmp_path / "one"
    assert value("--data", LABELLED, "--output", one) == 0
    assert json.loads((one / "config.json").read_text())["data"] == LABELLED
    assert main(["value", "--resume", str(one), "--steps", "4"]) == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data-weights", "1"], "1 --data-weights for 2 datasets"),
        (["--data-weights", "1", "0"], "--data-weights"),
        (["--success", "all", "data", "all"], "3 --success for 2 datasets"),
        ([], "does not say which episodes succeeded"),
    ],
)
def test_what_does_not_go_together_is_refused(words, named, tmp_path, capsys):
    assert value("--data", LABELLED, BARE, *words, "--output", tmp_path / "run") == 2
    assert named in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_an_option_that_is_given_again_adds_to_itself():
    words = ["--policy", "p", "--value", "a", "--port", "1", "--value=b", "--value", "c", "d"]
    assert parse(Serve, words, "genpol serve").value == ("a", "b", "c", "d")
    words = ["--hidden", "8", "--data", "a", "--hidden", "9", "--steps", "-1"]
    assert gathered(Value, words) == ["--hidden", "8", "9", "--data", "a", "--steps", "-1"]
    assert parse(Serve, ["--policy", "p", "--policy", "q"], "genpol serve").policy == "q"


def test_python_may_name_one_or_several():
    assert Train(data="a").data == ("a",) and Train(data=Path("a")).data == ("a",)
    assert Train(data=["a", "b"]).data == ("a", "b") and Train(data=None).data == ()
    assert Train.recommended(data="a", success="all").success == ("all",)
