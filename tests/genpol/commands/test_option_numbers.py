"""Every number among the options of every command has a range, and is held to it."""

from __future__ import annotations

import importlib
import json
import math
import random
from dataclasses import replace
from typing import Any, get_args, get_origin

import annotated_types
import numpy as np
import pytest
import torch

from genpol.cli import main
from genpol.commands.parsing import parse
from genpol.commands.table import COMMANDS
from offline.errors import InputError
from offline.option_check import check_numbers, numeric_fields
from robots.envs.make import layout_seed

# What each command cannot do without.
NEEDED = {
    "generate": ["--prompts", "world"],
    "collect": ["--env", "metaworld/push-v3", "--output", "out.hdf5"],
    "data chunk": ["demos.hdf5", "--output", "out.hdf5"],
    "clone": ["--data", "demos.hdf5"],
    "label": ["demos.hdf5"],
    "value": ["--data", "demos.hdf5"],
    "steer": ["--policy", "policy", "--value", "value"],
}


def options_of(name: str) -> type:
    entry = COMMANDS[name]
    return getattr(importlib.import_module(entry.module), entry.options)


NUMBERS = [(name, field) for name in COMMANDS for field in numeric_fields(options_of(name))]
SEEDED = [name for name, field in NUMBERS if field == "seed"]


def leaves(hint: Any, marks: tuple[Any, ...] = ()) -> list[tuple[type, tuple[Any, ...]]]:
    """The numeric types inside an annotation, each with what is annotated to it."""
    if hint in (int, float):
        return [(hint, marks)]
    if hasattr(hint, "__metadata__"):
        return leaves(hint.__origin__, hint.__metadata__)
    return [leaf for arg in get_args(hint) if get_origin(hint) for leaf in leaves(arg)]


@pytest.mark.parametrize(("name", "field"), NUMBERS)
def test_every_number_has_a_lower_and_an_upper_bound(name, field):
    found = leaves(numeric_fields(options_of(name))[field])
    assert found
    for _, marks in found:
        kinds = {type(mark) for mark in marks}
        assert kinds & {annotated_types.Ge, annotated_types.Gt}, "no lower bound"
        assert kinds & {annotated_types.Le, annotated_types.Lt}, "no upper bound"


@pytest.mark.parametrize("name", sorted({name for name, _ in NUMBERS}))
def test_what_is_not_finite_or_too_large_is_refused_for_every_option(name):
    options, needed = options_of(name), NEEDED.get(name, [])
    good = parse(options, needed, "genpol")
    for field, hint in numeric_fields(options).items():
        many = "tuple" in str(hint)
        for number in (math.nan, math.inf, -(2**110), 1e31, 10**5000, "3", True):
            values = getattr(good, field)
            bad = tuple(number for _ in values or (1,)) if many else number
            with pytest.raises(InputError) as refused:
                check_numbers(replace(good, **{field: bad}))
            line = str(refused.value)
            assert line.startswith(f"--{field.replace('_', '-')} must be") and len(line) < 250


@pytest.mark.parametrize(
    "words",
    [
        ["--keep-checkpoints", "0"], ["--checkpoint-every", "0"], ["--seed", "-1"],
        ["--seed", str(2**64)], ["--seed", str(2**63)], ["--learning-rate", "nan"],
        ["--learning-rate", "inf"], ["--weight-decay", "-1"], ["--weight-decay", "nan"],
        ["--weight-decay", "inf"], ["--max-grad-norm", "nan"], ["--beta", "inf"],
        ["--guidance-scale", "-1"], ["--clip", "0"], ["--eval-every", "0"], ["--held-out", "1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_finetune_refuses_them_before_anything_is_written(words, tmp_path, capsys):
    assert main(["finetune", *words, "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {words[0]} must be ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SEEDED)
def test_the_largest_seed_is_taken_and_the_next_one_is_not(name):
    options, needed = options_of(name), NEEDED.get(name, [])
    assert parse(options, [*needed, "--seed", str(2**63 - 1)], "genpol").seed == 2**63 - 1
    for seed in (2**63, -1):
        with pytest.raises(InputError, match="--seed must be"):
            parse(options, [*needed, "--seed", str(seed)], "genpol")


def test_what_draws_random_numbers_takes_the_largest_seed_and_those_derived_from_it():
    from diffusion.streams import generators
    from genpol.runs.rng import global_random_state, seed_everything, set_global_random_state
    from robots.serving.per_client import noise

    seed, kept = 2**63 - 1, global_random_state()
    try:
        seed_everything(seed)
    finally:
        set_global_random_state(kept)
    for derived in (seed, seed + 32, seed + 2**31):  # the most images that `generate` numbers
        torch.Generator().manual_seed(derived)
    np.random.default_rng([seed, 1])
    random.Random(seed)
    assert len(generators(seed, 1, 0, range(2))) == 2
    assert next(noise(seed)).initial_seed() >= 0
    assert 0 <= layout_seed("collect", seed, 0) < 2**31


def test_presets_and_recommended_defaults_are_in_range():
    for words in ([], ["--preset", "faithful"], ["--agent", "sac", "--world-model", "mle"]):
        check_numbers(parse(options_of("train"), ["--env", "Hopper-v5", *words], "genpol"))
    for model in ("tiny", "sd"):
        from genpol.commands.finetune.command import complete

        more = {} if model == "tiny" else {"reward": "clip", "prompts": "x.txt"}
        complete(options_of("finetune")(model=model, **more))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "x" * 4000], '--epochs expects a whole number; received "xxx'),
        (["--" + "x" * 4000], "unknown option --xxx"),
        (["--output", "x" * 5000], 'at most 4096 bytes of text, received "xxx'),
        (["--model", "\x00"], "expected words of"),
        (["--model", "x" * 300 + "/y"], "x"),
        (["--epochs", "\u0663"], "--epochs expects plain digits"),
        (["--epochs=\uff13"], "--epochs expects plain digits"),
        (["junk" * 900], '"junkjunk'),
        (["--train", "y" * 4000], "--train expects one of lora, full"),
    ],
)
def test_what_is_far_too_long_is_not_repeated_whole(words, said, tmp_path, capsys):
    assert main(["finetune", *words, "--output", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and said in line and len(line) < 600 and line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_number_that_was_edited_in_a_run_folder_is_refused(tmp_path, capsys):
    from genpol.runs.run import FORMAT

    document = {"command": "finetune", "format": FORMAT, "epochs": "10", "model": "tiny"}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert main(["finetune", "--resume", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert 'config.json: "epochs": should be an integer, received "10"' in said
