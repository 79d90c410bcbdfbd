"""Every example of docs/PYTHON.md and docs/EXTENDING.md does what the page says.

Those of PYTHON.md run as printed, but for the replacements below, which make them short. Those of
EXTENDING.md are written where the page says, and their tests are run.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from doc_blocks import ROOT, files, python_blocks, sections

PYTHON, EXTENDING = sections(ROOT / "docs/PYTHON.md"), sections(ROOT / "docs/EXTENDING.md")
# Heading -> (what is printed, what is run instead) and what the example must print.
EXAMPLES: dict[str, tuple[list[tuple[str, str]], str]] = {
    "Steer a policy": ([("range(50)", "range(1)")], "steered: success in"),
    "Train a critic": ([("steps=8_000", "steps=20")], "held out, AUC of success: 0."),
    "Fine-tune a pipeline with a reward of your own": (
        [
            (
                "epochs=10",
                "epochs=1, prompts_per_epoch=2, images_per_prompt=2, eval_images=2, "
                "final_eval_images=2",
            )
        ],
        "held out: ",
    ),
    "Fine-tune a robot policy with a reward of your own": (
        [("range(300)", "range(2)")],
        "0 steadiness -0.",
    ),
    "Train EXPO on a gymnasium environment of your own": (
        [
            ("steps=2_000", "steps=60, update_after=40, eval_episodes=2"),
            ('"start_steps": 500', '"start_steps": 40'),
        ],
        "success: ",
    ),
    "Serve": ([], " answers with 4 actions"),
}
FAMILIES = ("A reward", "An objective", "A pipeline family", "An environment family",
            "A policy adapter", "A dataset format", "An agent")  # fmt: skip


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}


def test_every_example_is_run():
    assert {heading for heading, text in PYTHON.items() if python_blocks(text)} == set(EXAMPLES)
    assert {heading for heading, text in EXTENDING.items() if python_blocks(text)} == set(FAMILIES)
    for heading in EXAMPLES:
        assert len(python_blocks(PYTHON[heading])) == 1
    for heading in FAMILIES:
        assert len(files(EXTENDING[heading])) == len(python_blocks(EXTENDING[heading])) == 2


@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_of_the_python_page(heading, tmp_path, monkeypatch, capsys):
    """With no names but its own, so that its imports are seen to be enough."""
    (source,) = python_blocks(PYTHON[heading])
    replaced, printed = EXAMPLES[heading]
    for before, after in replaced:
        assert source.count(before) == 1, f'"{before}" is no longer in the example'
        source = source.replace(before, after)
    monkeypatch.chdir(tmp_path)  # where runs/ is made
    exec(compile(source, f"docs/PYTHON.md, {heading}", "exec"), {"__name__": "__main__"})
    assert printed in capsys.readouterr().out


@pytest.mark.slow
def test_the_examples_of_the_extending_page(tmp_path):
    """All in one process, so that what is heavy is imported once."""
    names = []
    for heading in FAMILIES:
        for name, source in files(EXTENDING[heading]).items():
            (tmp_path / name).write_text(source)
            names.append(name)
    assert len(set(names)) == 2 * len(FAMILIES)
    tests = sorted(name for name in names if name.startswith("test_"))
    assert len(tests) == len(FAMILIES)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
