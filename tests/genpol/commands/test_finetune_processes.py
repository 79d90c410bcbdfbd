"""Two processes compute what one does; where one dies, the run ends, and one process goes on."""

from __future__ import annotations

import json

import pytest
from pair_files import pair_file
from rank_cases import (
    CASES,
    LONG_CASES,
    assert_same,
    cases_and_command,
    long_cases,
    numbers,
    read,
    said,
    start,
    tuner_of,
)
from small_runs import SMALL, checkpoint, finetune, lasting, resume, words

RUN = {
    "reward": "rank_cases:deadly",
    "prompts_per_epoch": 3,
    "num_inference_steps": 2,
    "inner_steps": 1,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def pair(models, prompts, tmp_path_factory):
    """The folder that two processes have left: the cases, and a run that was cut short."""
    folder = tmp_path_factory.mktemp("pair")
    options = {**SMALL, **RUN, "model": models["sd"], "prompts": prompts, "output": folder / "run"}
    command = ["finetune", *words(**options)]
    started = start(lambda: cases_and_command(folder, command), 2, folder)
    words_of_both = said(started, folder, 300)
    return folder, [process.exitcode for process in started], words_of_both


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name, pair):
    """3 prompts x 5 images on 2 processes: nothing divides."""
    one = numbers(tuner_of(**CASES[name]))
    first, second = read(pair[0], name, 2)
    assert_same(one, first)
    assert_same(first, second, 0)


def test_a_killed_process_ends_the_run_which_one_process_goes_on_with(
    pair, models, prompts, tmp_path, monkeypatch
):
    monkeypatch.setattr("genpol.finetuning.session.write_page", lambda folder: folder)
    folder, codes, printed = pair
    assert codes == [1, -9], printed
    (line,) = [one for one in printed[0][1].splitlines() if one.startswith("error")]
    assert "process 1 of 2" in line and "ended without a word" in line
    assert "checkpoint of epoch 1 is kept; continue with --resume" in line
    assert printed[1][0] == "" and "error" not in printed[1][1]  # only the first process speaks
    assert json.loads((folder / "run" / "config.json").read_text())["processes"] == 2

    assert resume(folder / "run") == 0
    assert json.loads((folder / "run" / "config.json").read_text())["processes"] == 1
    options = {**RUN, "model": models["sd"], "prompts": prompts}
    assert finetune(output=tmp_path / "one", **options) == 0
    for both, alone in zip(lasting(folder / "run"), lasting(tmp_path / "one"), strict=True):
        assert both.keys() == alone.keys()
        for name, value in alone.items():
            assert (both[name] == "") == (value == "")
            if value:
                assert float(both[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
    both, alone = checkpoint(folder / "run"), checkpoint(tmp_path / "one")
    assert both[0] == alone[0] == 2 and both[1].keys() == alone[1].keys()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    pair_file(folder)
    started = start(lambda: long_cases(folder), 3, folder)
    printed = said(started, folder, 1200)
    assert [process.exitcode for process in started] == [0, 0, 0], printed
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG_CASES)
def test_three_processes_equal_one_with_every_objective_and_guard(name, three):
    options = dict(LONG_CASES[name])
    if name == "pairs":
        options["pairs"] = str(three / "pairs.jsonl")
    one = numbers(tuner_of(**options))
    found = read(three, name, 3)
    assert_same(one, found[0])
    for other in found[1:]:
        assert_same(found[0], other, 0)
