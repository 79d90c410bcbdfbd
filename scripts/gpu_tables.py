"""What the kit does on a GPU: docs/results/gpu_finetune.csv and gpu_robots.csv.

    python -m scripts.gpu_tables                     every row that is missing, then the pages
    python -m scripts.gpu_tables --only sdxl         rows of one shape, or of expo or decision
    python -m scripts.gpu_tables --write             the pages alone, from the rows that there are

    finetune   `genpol bench finetune` of pipelines with the shapes of public models and random
               weights (scripts/real_shapes.py), bf16, 512 pixels, with and without --compile
    limited    the SDXL shape once more, with all but 24 GB of the card out of reach
    expo       `genpol bench expo`, beside the published JAX code's figures
    decision   `genpol bench decision` among 32 candidates

Each row is a process of its own, and is written once it has ended; a row that is there is not run
again. A row that fails is not written: its last words are printed, and the exit code is 1.
`--device cpu --tiny --output FOLDER` tries all of it in small, on any machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from scripts.results_table import RESULTS_PAGE, Table, write_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PUBLISHED = RESULTS / "bench_expo_published.json"
LIMIT = 24.0  # GB of the limited rows
# Images of a batch and rows of a micro-batch that are usual for a model of that size, and whether
# activations are computed again.
BATCHES: dict[str, tuple[int, int, bool]] = {
    "sd15": (16, 8, False),
    "sdxl": (8, 4, False),
    "sd35-medium": (8, 4, True),
    "flux": (4, 2, True),
}
LIMITED = {"sdxl": (4, 1, True)}
FINETUNE = (
    "shape", "compile", "limit_gb", "device", "images", "rollout_images_per_second",
    "rollout_images_per_second_plain", "training_images_per_second",
    "training_images_per_second_plain", "images_per_second", "images_per_second_ddpo",
    "model_share", "model_share_plain", "peak_mb", "peak_mb_plain", "planned_mb",
)  # fmt: skip
ROBOTS = (
    "what", "compile", "device", "critic_update_ms", "env_step_ms", "base_p50_ms",
    "steered_p50_ms", "steered_p95_ms",
)  # fmt: skip
POLICIES = ("diffusion", "flow", "gaussian")
MISSING = "No GPU has measured these rows yet: `python -m scripts.gpu_tables` fills them."


@dataclass(frozen=True)
class Place:
    """Where rows are measured and written."""

    device: str
    name: str
    output: Path
    work: Path
    tiny: bool

    def finetune(self) -> Table:
        return Table(self.output / "gpu_finetune.csv", FINETUNE)

    def robots(self) -> Table:
        return Table(self.output / "gpu_robots.csv", ROBOTS)


# Runs a command with a part of the card alone in reach.
RUN = """
import sys
share, words = float(sys.argv[1]), sys.argv[2:]
if share < 1:
    import torch
    torch.cuda.set_per_process_memory_fraction(share)
from genpol.cli import main
sys.exit(main(words))
"""


class Failed(Exception):
    """A row's process ended with an error; its last words."""


def genpol(words: list[str], share: float = 1.0) -> str:
    """Run a command in a process of its own; what it printed.

    Raises:
        Failed: it ended with an error.
    """
    found = subprocess.run(
        [sys.executable, "-c", RUN, str(share), *words], capture_output=True, text=True, cwd=ROOT
    )
    if found.returncode:
        said = (found.stderr.strip() or found.stdout.strip()).splitlines()
        raise Failed(said[-1] if said else f"it ended with {found.returncode} and said nothing")
    return found.stdout


def takes(command: str, option: str) -> bool:
    """Whether a command is there and has an option."""
    from genpol.commands.table import COMMANDS

    if command not in COMMANDS:
        return False
    entry = COMMANDS[command]
    options = getattr(importlib.import_module(entry.module), entry.options)
    return option in {field.name for field in fields(options)}


def compiled(command: str) -> list[bool]:
    """The choices of --compile that a command has."""
    return [False, True] if takes(command, "compile") else [False]


def rows(place: Place) -> Iterator[tuple[str, Table, dict[str, Any], Any]]:
    """(label, table, key, how to measure it) of every row."""
    for limit, shapes in ((None, BATCHES), (LIMIT, LIMITED)):
        for shape, batches in shapes.items():
            for compile_ in compiled("bench finetune") if limit is None else [False]:
                key = {"shape": shape, "compile": compile_, "limit_gb": limit or ""}
                work = (place, shape, batches, compile_, limit)
                yield shape, place.finetune(), key, lambda work=work: finetune_row(*work)
    for compile_ in compiled("bench expo"):
        key = {"what": "expo", "compile": compile_}
        yield "expo", place.robots(), key, lambda c=compile_: [expo_row(place, c)]
    if takes("bench decision", "num_candidates"):
        for compile_ in compiled("bench decision"):
            key = {"what": f"decision, {POLICIES[0]}", "compile": compile_}
            yield "decision", place.robots(), key, lambda c=compile_: decision_rows(place, c)


def finetune_row(
    place: Place, shape: str, batches: tuple[int, int, bool], compile_: bool, limit: float | None
) -> list[dict[str, Any]]:
    """A shape's speed and memory."""
    folder = place.work / f"{shape}{'-small' if place.tiny else ''}"
    if not folder.exists():
        from scripts.real_shapes import build

        build(shape, folder, small=place.tiny)
    rollout, micro, again = batches
    size = "64" if place.tiny else "512"
    images, steps, epochs = ("2", "2", "1") if place.tiny else (str(rollout), "20", "3")
    common = [
        *("--model", str(folder), "--dtype", "bf16", "--device", place.device),
        *("--reward", "jpeg_compressibility", "--prompts", "animals"),
        *("--prompts-per-epoch", "2", "--images-per-prompt", images),
        *("--num-inference-steps", steps, "--inner-steps", "1"),
        *("--rollout-batch", str(rollout), "--micro-batch", str(micro)),
        *("--height", size, "--width", size),
        *(["--compile"] if compile_ else []),
        *(["--gradient-checkpointing"] if again else []),
    ]
    share = 1.0
    if limit is not None and place.device.startswith("cuda"):
        import torch

        share = min(1.0, limit * 1e9 / torch.cuda.get_device_properties(0).total_memory)
    plan = json.loads(genpol(["finetune", "--plan", "--json", *common, "--eval-images", "1"]))
    where = "device" if "device" in plan["peak"] else "host"
    # An evaluation is no part of the bench.
    told = {k: v[where] for k, v in plan["phases"].items() if k not in ("evaluate", "show")}
    with tempfile.TemporaryDirectory(dir=place.work) as run:
        genpol(["bench", "finetune", *common, "--epochs", epochs, "--output", run], share)
        found = json.loads((Path(run) / "summary.json").read_text())
    names = [c for c in FINETUNE if f"bench/{c}" in found]
    return [
        {"shape": shape, "compile": compile_, "limit_gb": limit or "", "device": place.name}
        | {name: float(found[f"bench/{name}"]) for name in names}
        | {"planned_mb": max(told.values()) / 1e6}
    ]


def expo_row(place: Place, compile_: bool) -> dict[str, Any]:
    """What an update of EXPO takes, and an environment step with its updates."""
    words = ["bench", "expo", "--device", place.device, "--learn-steps", "0"]
    words += ["--env-steps", "1" if place.tiny else "50"] + ["--compile"] * compile_
    with tempfile.TemporaryDirectory(dir=place.work) as run:
        genpol([*words, "--output", run])
        found = json.loads((Path(run) / "summary.json").read_text())
    whole = found.get("bench/env_step_unclocked_wall_s", found["bench/env_step_wall_s"])
    return {"what": "expo", "compile": compile_, "device": place.name} | {
        "critic_update_ms": 1e3 * found["bench/critic_update_wall_s"],
        "env_step_ms": 1e3 * whole,
    }


def decision_rows(place: Place, compile_: bool) -> list[dict[str, Any]]:
    """What a decision among 32 candidates takes, by kind of policy."""
    words = ["bench", "decision", "--device", place.device, "--num-candidates", "32"]
    words += ["--decisions", "2" if place.tiny else "200"] + ["--compile"] * compile_
    with tempfile.TemporaryDirectory(dir=place.work) as run:
        genpol([*words, "--output", run])
        found = json.loads((Path(run) / "summary.json").read_text())
    parts = ("base_p50_ms", "steered_p50_ms", "steered_p95_ms")
    return [
        {"what": f"decision, {kind}", "compile": compile_, "device": place.name}
        | {part: float(found[f"bench/{kind}_{part}"]) for part in parts}
        for kind in POLICIES
    ]


# -- pages ----------------------------------------------------------------------------------------


def finetune_page(found: list[dict[str, str]]) -> str:
    """The rows of fine-tuning as a table in Markdown."""
    if not found:
        return MISSING
    head = (
        "| shape | compile | drawing, images/s (plain) | training, images/s (plain) | "
        "share in the model | peak GB (planned) |"
    )
    lines = [head, "|---|---|---|---|---|---|"]
    for row in found:
        limit = f", {float(row['limit_gb']):g} GB" if row["limit_gb"] else ""
        lines.append(
            f"| {row['shape']}{limit} | {'on' if row['compile'] == 'True' else 'off'} "
            f"| {_number(row['rollout_images_per_second'])} "
            f"({_number(row['rollout_images_per_second_plain'])}) "
            f"| {_number(row['training_images_per_second'])} "
            f"({_number(row['training_images_per_second_plain'])}) "
            f"| {float(row['model_share']):.0%} "
            f"| {_gb(row['peak_mb'])} ({_gb(row['planned_mb'])}) |"
        )
    return "\n".join([*lines, "", _measured_on(found)])


def robots_page(found: list[dict[str, str]]) -> str:
    """The rows of robots as tables in Markdown, EXPO's beside the published JAX code's."""
    if not found:
        return MISSING
    known = json.loads(PUBLISHED.read_text())
    update, step = known["bench/critic_update_cpu_s"], known["bench/env_step_cpu_s"]
    lines = ["| EXPO | compile | critic update, ms | environment step, ms |", "|---|---|---|---|"]
    published = "published JAX code, CPU time of two cores"
    lines.append(f"| {published} | - | {1e3 * update:.0f} | {1e3 * step:.0f} |")
    for row in found:
        if row["what"] == "expo":
            lines.append(
                f"| genpol | {'on' if row['compile'] == 'True' else 'off'} "
                f"| {_number(row['critic_update_ms'])} | {_number(row['env_step_ms'])} |"
            )
    lines += ["", "| decision among 32 | compile | one sample, ms | steered, ms | 95 % below, ms |"]
    lines.append("|---|---|---|---|---|")
    for row in found:
        if row["what"].startswith("decision"):
            lines.append(
                f"| {row['what'].removeprefix('decision, ')} "
                f"| {'on' if row['compile'] == 'True' else 'off'} | {_number(row['base_p50_ms'])} "
                f"| {_number(row['steered_p50_ms'])} | {_number(row['steered_p95_ms'])} |"
            )
    return "\n".join([*lines, "", _measured_on(found)])


def _measured_on(found: list[dict[str, str]]) -> str:
    return f"Measured on {', '.join(dict.fromkeys(row['device'] for row in found))}."


def _number(text: str) -> str:
    return f"{float(text):.3g}" if text else "-"


def _gb(megabytes: str) -> str:
    return f"{float(megabytes) / 1e3:.1f}" if megabytes else "-"


def write_pages(place: Place, page: Path = RESULTS_PAGE) -> None:
    """Put both tables onto the page."""
    write_block("gpu-finetune", finetune_page(place.finetune().rows()), page)
    write_block("gpu-robots", robots_page(place.robots().rows()), page)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default=None, help="a shape, expo or decision")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gpu_tables")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--write", action="store_true", help="write the pages from the rows alone")
    options = parser.parse_args(words)
    cuda = options.device.startswith("cuda")
    if options.output == RESULTS and (options.tiny or not cuda) and not options.write:
        parser.error("rows of docs/results are measured on a GPU: pass another --output")
    name = options.device
    if cuda and not options.write:
        import torch

        if not torch.cuda.is_available():
            parser.error(f"there is no {options.device} here")
        name = torch.cuda.get_device_name(options.device)
    options.work.mkdir(parents=True, exist_ok=True)
    place = Place(options.device, name, options.output, options.work, options.tiny)
    failed = 0
    for label, table, key, measure in [] if options.write else rows(place):
        if options.only not in (None, label) or table.has(**key):
            continue
        print(f"{label}: {key}", flush=True)
        try:
            table.add(*measure())
        except Failed as error:
            failed += 1
            print(f"  failed: {error}", flush=True)
    if options.output == RESULTS:
        write_pages(place)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
