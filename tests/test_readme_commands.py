"""Every code block of the README runs, in order, in one folder; only the sizes are smaller.

Commands run in this process, as printed, with the options of SMALLER in place of larger values or
beside them. A command that downloads a model is read and checked, and not run. The commands of the
other pages are read and checked, too.
"""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import ROOT, Block, blocks, lines, with_options, words

from genpol import cli
from genpol.commands.table import COMMANDS

README = ROOT / "README.md"
BLOCKS = [block for block in blocks(README) if block.language]
HUB = "stable-diffusion-v1-5/"  # what has to be downloaded, and needs a GPU

_RL = {
    "--wandb": "disabled", "--device": "cpu", "--steps": "24", "--batch-size": "8",
    "--update-after": "8", "--hidden": "8", "--value-ensemble": "2", "--subset": "1",
    "--eval-every": "100", "--eval-episodes": "1", "--max-steps": "8", "--log-every": "8",
    "--replay-capacity": "200",
}  # fmt: skip
_FINETUNE = {
    "--wandb": "disabled", "--device": "cpu", "--epochs": "1", "--prompts-per-epoch": "2",
    "--images-per-prompt": "2", "--inner-steps": "1", "--eval-images": "2",
    "--final-eval-images": "2", "--num-inference-steps": "2",
    "--best-of-k": "2", "--guidance-control": "none",
}  # fmt: skip
# Words that a command line holds -> options; the most specific entry that fits counts.
SMALLER: dict[str, dict[str, str]] = {
    "finetune": _FINETUNE,
    "finetune --resume": {"--epochs": "2", "--wandb": "disabled"},
    "finetune --pairs": {n: v for n, v in _FINETUNE.items() if n != "--images-per-prompt"},
    "generate": {"--num-prompts": "2", "--num-inference-steps": "2", "--device": "cpu"},
    "collect": {"--episodes": "3"},
    "clone": {
        "--steps": "2", "--batch-size": "8", "--features": "16", "--width": "8",
        "--denoising-steps": "2", "--wandb": "disabled", "--device": "cpu",
    },
    "value": {
        "--steps": "2", "--batch-size": "8", "--hidden": "8", "--wandb": "disabled",
        "--device": "cpu",
    },
    "value --model": {
        "--steps": "2", "--batch-size": "8", "--num-prompts": "3", "--images-per-prompt": "2",
        "--num-held-out": "2", "--num-inference-steps": "2", "--channels": "8", "--blocks": "1",
        "--wandb": "disabled", "--device": "cpu",
    },
    "steer": {
        "--episodes": "2", "--num-candidates": "2", "--max-steps": "8", "--videos": "0",
        "--wandb": "disabled",
    },
    "serve": {"--port": "0"},
    "train": _RL,
    "train --base": {k: v for k, v in _RL.items() if k != "--replay-capacity"}
    | {"--num-candidates": "2"},
    "train --resume": {"--steps": "32", "--wandb": "disabled"},
    "train --world-model": _RL | {
        "--model-hidden": "8", "--model-updates": "2", "--ensemble": "2", "--elites": "1",
        "--steps": "64", "--update-after": "40", "--model-every": "40", "--start-steps": "40",
        "--rollouts-per-step": "1", "--imagined-capacity": "64",
    },
}  # fmt: skip


def smaller(command: list[str]) -> list[str]:
    """A command of a page as it runs here."""
    fitting = [key for key in SMALLER if set(key.split()) <= set(command)]
    assert fitting, f"no sizes for {command}: add them to SMALLER"
    return with_options(command, SMALLER[max(fitting, key=len)])


def parsed(command: list[str], monkeypatch) -> Any:
    """The options of a printed command, read as on the command line and checked; nothing runs."""
    names = (" ".join(command[1 : 1 + size]) for size in (2, 1))
    module = next(COMMANDS[name].module for name in names if name in COMMANDS)
    found: list[Any] = []
    monkeypatch.setattr(importlib.import_module(module), "run", found.append)
    assert cli.main(command[1:]) == 0, command
    return found[0]


def commands(page: Path) -> list[list[str]]:
    """What stands in the page's blocks as a `genpol` command."""
    shells = [block for block in blocks(page) if block.language in ("", "bash", "sh")]
    every = [line for block in shells for line in lines(block)]
    return [words(line) for line in every if line.startswith("genpol ")]


PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_printed_command_is_one_that_genpol_knows(page, monkeypatch, capsys):
    for command in commands(page):
        parsed(command, monkeypatch)
    assert page != README or len(commands(page)) > 12


def test_commands_that_need_a_download_are_sound(monkeypatch):
    from diffusion.config import check
    from diffusion.recommended import PUBLISHED
    from diffusion.rewards import PLAIN, WITH_WEIGHTS
    from diffusion.rewards.expression import parse

    found = [command for command in commands(README) if any(w.startswith(HUB) for w in command)]
    assert len(found) == 1
    config = parsed(found[0], monkeypatch)
    assert (config.epochs, config.autocast) == (100, "bf16")
    check(config.resolved(PUBLISHED))
    terms = parse(config.reward, [*PLAIN, *WITH_WEIGHTS])
    assert [term.name for term in terms] == ["pickscore", "hpsv2"]


def test_sizes_are_replaced_and_added():
    command = words('genpol collect --episodes 120 --output "a b.hdf5"  # a comment')
    assert smaller(command) == ["genpol", "collect", "--episodes", "3", "--output", "a b.hdf5"]
    resumed = smaller(["genpol", "train", "--resume", "runs/x"])
    assert resumed[4:] == ["--steps", "32", "--wandb", "disabled"]


@pytest.fixture
def served_once(monkeypatch) -> list[dict[str, Any]]:
    """`genpol serve` answers one client and stops; what the client was told."""
    openpi = pytest.importorskip("openpi_client.websocket_client_policy")
    from robots.serving.serve import PolicyServer

    told: list[dict[str, Any]] = []

    def run(server: PolicyServer) -> None:
        with server:
            port = int(server.address.rsplit(":", 1)[1])
            client = openpi.WebsocketClientPolicy("127.0.0.1", port)
            told.append(client.get_server_metadata())
            client._ws.close()

    monkeypatch.setattr(PolicyServer, "run", run)
    return told


def execute(block: Block, names: dict[str, Any]) -> None:
    """One block in the current folder; a Python block that names a file becomes that file."""
    if block.language == "python":
        first = block.text.split("\n", 1)[0]
        if first.endswith(".py"):
            Path(first.removeprefix("# ")).write_text(block.text, encoding="utf-8")
            return
        exec(compile(block.text, f"README.md:{block.line}", "exec"), names)
        return
    for line in lines(block):
        command = words(line)
        if any(word.startswith(HUB) for word in command):
            continue
        if command[0] == "genpol":
            assert cli.main(smaller(command)[1:]) == 0, line
        else:
            assert command[0] == "printf"  # nothing else is run blindly
            subprocess.run(line, shell=True, check=True)


def test_every_block_of_the_readme_runs(tmp_path, monkeypatch, served_once, capsys):
    # Its page takes longer than so small a run, and has tests of its own.
    monkeypatch.setattr("genpol.training.report.write_page", lambda folder: folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        assert block.language in ("bash", "python"), f"line {block.line}: {block.language}"
        execute(block, names)
    assert names["image"].images[0].size == (64, 64)
    assert len(served_once) == 1 and served_once[0]
    for run in (
        "images",
        "flow",
        "dpo",
        "clone",
        "value",
        "steer",
        "expo",
        "expo-steered",
        "mbpo",
        "line",
    ):
        assert json.loads((tmp_path / "runs" / run / "summary.json").read_text())
    assert (tmp_path / "runs/images/samples/samples_before_after-step-000002.png").is_file()
    assert len(list((tmp_path / "runs/pictures").glob("0*.png"))) == 2
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 2
