"""The configurations that ship are ones that accelerate reads, and ask for what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from diffusion.sharding import requested

CONFIGS = Path(__file__).parents[1] / "configs"
PROCESSES = {"one_gpu": 1, "eight_gpus": 8, "two_nodes": 16}


def test_three_ship_and_no_more():
    assert {path.stem for path in CONFIGS.iterdir()} == set(PROCESSES)


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_reads_it(name):
    found = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert found.num_processes == PROCESSES[name] and found.mixed_precision == "no"


@pytest.mark.parametrize(("name", "copies"), [("eight_gpus", 1), ("two_nodes", 2)])
def test_a_launch_with_it_asks_for_fsdp2(name, copies, monkeypatch):
    file = str(CONFIGS / f"{name}.yaml")
    words = ["--config_file", file, "--main_process_port", "0", "-m", "genpol", "finetune"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    for variable, value in prepare_multi_gpu_env(arguments).items():
        if variable.startswith(("ACCELERATE", "FSDP", "PARALLELISM")):
            monkeypatch.setenv(variable, value)
    others = {"RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for variable, value in {"WORLD_SIZE": str(arguments.num_processes), **others}.items():
        monkeypatch.setenv(variable, value)
    said: list[str] = []
    found = requested(said.append)
    assert found is not None and found.copies == copies and not said
    assert found.plugin.fsdp_version == 2 and not found.checkpointing
    assert found.plugin.transformer_cls_names_to_wrap is None  # diffusers knows the blocks
