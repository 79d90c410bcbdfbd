"""The commands: words on the command line, where each is, and what it does in one line.

The lines are repeated here so that `genpol --help` imports no command at all; a test compares them
with the first line of each docstring.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """One command of the table."""

    module: str
    """Where `run(config)` is."""
    options: str
    """The dataclass of its options, in that module."""
    summary: str
    """First line of the dataclass's docstring."""


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "genpol.commands.demo.command",
        "Demo",
        "Run each main job, small, on shipped assets; write a page of results.",
    ),
    "finetune": Command(
        "genpol.commands.finetune.command",
        "Finetune",
        "Fine-tune an image pipeline on a reward, or on pairs of images.",
    ),
    "generate": Command(
        "genpol.commands.generate.command",
        "Generate",
        "Draw images from a pipeline (+ LoRA), optionally the best of K by a reward.",
    ),
    "collect": Command(
        "genpol.commands.collect.command",
        "Collect",
        "Collect demonstrations by two imperfect scripted operators, failures kept.",
    ),
    "data info": Command(
        "genpol.commands.data.info",
        "DataInfo",
        "Describe and validate a dataset: robomimic or D4RL HDF5, Minari, LeRobot v3.",
    ),
    "data chunk": Command(
        "genpol.commands.data.chunk",
        "DataChunk",
        "Rewrite a dataset so that each action is several in a row (for robomimic).",
    ),
    "label": Command(
        "genpol.commands.label.command",
        "Label",
        "Say which episodes of a dataset succeeded: a page in the browser, or a judge.",
    ),
    "clone": Command(
        "genpol.commands.clone",
        "Clone",
        "Behaviour-clone a diffusion, flow or Gaussian policy from a dataset.",
    ),
    "value": Command(
        "genpol.commands.value.command",
        "Value",
        "Learn a value: a critic from a dataset (--data), or one of images (--model).",
    ),
    "steer": Command(
        "genpol.commands.steer.command",
        "Steer",
        "Evaluate a policy with and without value steering, on paired episodes.",
    ),
    "train": Command(
        "genpol.commands.train.command",
        "Train",
        "Improve a policy by reinforcement learning, offline to online (EXPO, peers).",
    ),
    "serve": Command(
        "genpol.commands.serve.command",
        "Serve",
        "Serve a policy, steered or not, or steer another server's policy (openpi).",
    ),
    "improve": Command(
        "genpol.commands.improve.command",
        "Improve",
        "Serve a policy, record what it does, learn from that, and swap, all at once.",
    ),
    "bench finetune": Command(
        "genpol.commands.bench.finetune",
        "BenchFinetune",
        "Measure fine-tuning: share of time in the model, images per second, memory.",
    ),
    "bench expo": Command(
        "genpol.commands.bench.expo",
        "BenchExpo",
        "Measure EXPO's learning: CPU-seconds per critic update and per step.",
    ),
    "bench decision": Command(
        "genpol.commands.bench.decision",
        "BenchDecision",
        "Measure a robot's decision: milliseconds of one sample, and steered among K.",
    ),
    "bench world-model": Command(
        "genpol.commands.bench.world_model",
        "BenchWorldModel",
        "Measure MBPO on Hopper: environment steps per CPU-second.",
    ),
    "bench beside": Command(
        "genpol.commands.bench.beside",
        "BenchBeside",
        "Measure decisions, an EXPO step and a fine-tuning epoch beside busy programs.",
    ),
    "completion": Command(
        "genpol.commands.completion",
        "Completion",
        "Print a script with which a shell completes commands and options.",
    ),
}
