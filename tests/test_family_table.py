"""Families x objectives: each family takes two steps, and the table says what cells give anew."""

from __future__ import annotations

import math

import pytest
import torch

from scripts import family_table as table
from scripts.family_cells import COLUMNS, FAMILIES, OBJECTIVES, YES, cell, tuner
from scripts.results_table import Table

# Objectives whose cells a slow test fills anew: three of each family, all of them in both ways.
OF = {name: [list(OBJECTIVES)[(i + j) % 8] for j in (0, 3, 6)] for i, name in enumerate(FAMILIES)}
HEAVY = ("sdxl", "sana")  # their fast test would take a second and more


def of_family(*heavy: str):
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in heavy else name for name in FAMILIES
    ]


@pytest.mark.parametrize("algorithm", ["grpo", "nft"])
@pytest.mark.parametrize("family", of_family(*HEAVY))
def test_every_family_takes_two_steps(family, algorithm):
    """One objective on trajectories, with noise in the steps; one on finished images, without."""
    training = tuner(family, algorithm, "lora")
    noisy = algorithm == "grpo" or not training.policy.family.flow  # DDIM always draws noise here
    assert bool(training.process.stochastic.any()) == noisy
    before = {name: p.detach().clone() for name, p in training.trained.parameters.items()}
    for _ in range(2):
        metrics = training.run_epoch()
        assert metrics["train/gradient_norm"] > 0
        assert all(math.isfinite(v) for k, v in metrics.items() if not k.startswith("memory"))
    assert training.trained.updates == 2
    after = training.trained.parameters
    assert all(bool(p.isfinite().all()) for p in after.values())
    moved = [name for name, p in after.items() if not torch.equal(p, before[name])]
    assert len(moved) > 0.8 * len(before)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_cells_filled_anew_say_what_the_table_says(family):
    stored = {tuple(row[k] for k in COLUMNS[:3]): row for row in table.TABLE.rows()}
    for i, algorithm in enumerate(OF[family]):
        train = table.TRAIN[i % 2]
        row = {name: str(value) for name, value in cell(family, algorithm, train).items()}
        assert table.verdict(row) == table.verdict(stored[family, algorithm, train]), row


def test_the_table_has_every_cell_once_and_the_page_says_what_it_says():
    found = [tuple(row[k] for k in COLUMNS[:3]) for row in table.TABLE.rows()]
    wanted = [tuple(key.values()) for family in FAMILIES for key in table.keys(family)]
    assert sorted(found) == sorted(wanted)
    page = table.PAGE.read_text()
    block = page.split("<!-- families -->")[1].split("<!-- /families -->")[0]
    assert block.strip() == table.text()


def row(**changed: str) -> dict[str, str]:
    given = {"family": "sd", "algorithm": "grpo", "train": "lora", "ratio_error": "4e-07"}
    return given | dict.fromkeys(("trains", "resumes", "reloads"), YES) | changed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, YES),
        ({"trains": "InputError: no"}, "trains: InputError: no"),
        ({"resumes": "3 of 9 tensors differ"}, "resumes: 3 of 9 tensors differ"),
        ({"reloads": "another image"}, "reloads: another image"),
        ({"ratio_error": "0.01"}, "ratio error 0.01"),
        ({"ratio_error": "nan"}, "ratio error nan"),
        ({"ratio_error": "", "algorithm": "nft"}, YES),
    ],
)
def test_a_verdict_is_the_first_thing_that_is_wrong(changed, said):
    assert table.verdict(row(**changed)) == said


def test_a_cell_that_fails_in_one_way_of_training_says_so(tmp_path, monkeypatch):
    rows = Table(tmp_path / "families.csv", COLUMNS)
    monkeypatch.setattr(table, "TABLE", rows)
    rows.add(row(), row(train="full", trains="Diverged: x | y"), row(algorithm="nft"))
    line = next(line for line in table.text().splitlines() if "StableDiffusionPipeline" in line)
    cells = dict(zip(("", *OBJECTIVES), line.strip("| ").split(" | "), strict=False))
    assert cells["grpo"] == "full: trains: Diverged: x / y"
    assert cells["nft"] == cells["awm"] == "not run"  # nft lacks its full training


def test_a_fault_becomes_the_cells_own_words(monkeypatch):
    from diffusion.finetune import Finetuner

    def broken(self, state, values):
        raise ValueError("the state\nis torn")

    monkeypatch.setattr(Finetuner, "load_state", broken)
    found = cell("pixart", "nft", "lora")
    assert found["resumes"] == "ValueError: the state is torn"
    assert (found["trains"], found["reloads"]) == (YES, YES)
