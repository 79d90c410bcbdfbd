"""The numbers of three short runs, to compare two versions of this code with each other.

    python -m scripts.same_numbers --against ../before     # this tree and another, bit for bit
    python -m scripts.same_numbers --golden                # this tree and tests/golden
    python -m scripts.same_numbers --checkout ../before --write tests/golden/same_numbers.json

Each run is one command of the kit in a process of its own, with a fixed seed, one thread and the
shipped assets of this tree:

    finetune   the shipped image pipeline, two epochs
    train      EXPO on the shipped robot policy, 600 environment steps, 500 updates
    steer      the shipped robot policy and critic, ten episodes of each arm

Compared is all that a run leaves as numbers: every CSV table, summary.json and the weights. What
the clock or the process decides (times, memory) is left out.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "same_numbers.json"
ASSETS = ROOT / "genpol" / "assets"

Numbers = dict[str, Any]
"""What a run left, by name: "metrics.csv/3/critic/td_loss" is the column of that table's third
row. Whole numbers are int, others float (NaN and infinity as text), hashes text."""

COMMON: dict[str, Any] = {"seed": 0, "wandb": "disabled"}
COMMANDS: dict[str, dict[str, Any]] = {
    "finetune": {
        "model": "tiny",
        "epochs": 2,
        "prompts_per_epoch": 4,
        "images_per_prompt": 4,
        "eval_images": 16,
        "eval_every": 1,
        "device": "cpu",
    },
    "train": {
        "agent": "expo",
        "base": ASSETS / "training" / "policy",
        "data": ASSETS / "training" / "demos.hdf5",
        "steps": 600,
        "update_after": 100,
        "reward": "zero-one",
        "reward_scale": 10,
        "n_step": 8,
        "batch_size": 128,
        "target_rate": 0.01,
        "init_temperature": 0.01,
        "value_ensemble": 5,
        "hidden": (256, 256),
        "num_candidates": 8,
        "candidates": "two-step",
        "edit_scale": 0.05,
        "base_filter": "success",
        "eval_every": 300,
        "eval_episodes": 5,
        "log_every": 100,
        "device": "cpu",
    },
    "steer": {
        "policy": ASSETS / "steering" / "policy",
        "value": ASSETS / "steering" / "value",
        "filtered": ASSETS / "steering" / "filtered",
        "num_candidates": 32,
        "temperature": 1,
        "episodes": 10,
        "videos": 0,
    },
}

# What the clock and the process say: columns and entries whose names hold one of these.
CLOCK = ("time/", "memory/", "latency", "seconds", "_ms")


# ------------------------------------------------------------------------------- running


def words(options: Mapping[str, Any]) -> list[str]:
    """`hidden=(8, 8)` as `--hidden 8 8`; True as a bare flag."""
    found = []
    for name, value in options.items():
        found.append(f"--{name.replace('_', '-')}")
        values = value if isinstance(value, (tuple, list)) else (value,)
        found += [] if value is True else [str(v) for v in values]
    return found


# Libraries choose instructions by processor, and sums then differ in their last bits. Contacts in
# the simulator turn that into other returns and other lengths of episodes within ten episodes, so
# no tolerance would tell such a run from a wrong one. These settings choose the instructions that
# every x86-64 processor of the last fifteen years has: of torch, oneDNN, MKL, OpenBLAS, numpy, and
# of the C library's sines and exponentials, which the simulator calls.
INSTRUCTIONS = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F,-AVX512VL,-FMA4",
}


def environment(checkout: Path) -> dict[str, str]:
    """In which the packages are those of `checkout`, and arithmetic has one thread."""
    one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "MPLBACKEND": "Agg"}
    code = {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    return os.environ | INSTRUCTIONS | one | quiet | code


def run(checkout: Path, command: str, folder: Path) -> Numbers:
    """One of COMMANDS with the code of `checkout`; leaves its run folder in `folder`.

    Raises:
        RuntimeError: the command failed; holds the end of what it said.
    """
    options = COMMANDS[command] | COMMON | {"output": folder}
    done = subprocess.run(
        [sys.executable, "-m", "genpol", command, *words(options)],
        env=environment(checkout),
        cwd=folder.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"genpol {command} of {checkout} failed:\n{done.stderr[-2000:]}")
    return numbers(folder)


# ------------------------------------------------------------------------------- reading


def numbers(folder: Path) -> Numbers:
    """All that the run in `folder` left as numbers, checkpoints apart."""
    found: Numbers = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(("checkpoints/", "wandb/")):
            continue
        if path.suffix == ".csv":
            found |= {f"{name}/{k}": v for k, v in table(path).items()}
        elif path.suffix == ".safetensors":
            found |= {f"{name}/{k}": v for k, v in weights(path).items()}
    summary = folder / "summary.json"
    if summary.is_file():
        entries = json.loads(summary.read_text("utf-8"))
        found |= {f"summary.json/{k}": v for k, v in entries.items() if not _clock(k)}
    return found


def table(path: Path) -> Numbers:
    """The entries of a CSV table as ROW/COLUMN, empty ones left out."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        f"{i}/{column}": _parsed(text)
        for i, row in enumerate(rows)
        for column, text in row.items()
        if text and not _clock(column)
    }


def weights(path: Path) -> Numbers:
    """Of a safetensors file: a hash of names, shapes and bits, and each tensor's root mean square.

    The file's own bytes would also tell in which order the tensors were written.
    """
    from safetensors.torch import load_file

    tensors, digest, found = load_file(path), hashlib.sha256(), {}
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
        # Rounded, as the last digit of a sum depends on where its memory lies; the hash tells bits.
        found[f"rms/{name}"] = float(f"{float(value.double().square().mean().sqrt()):.12g}")
    return {"sha256": digest.hexdigest()} | found


def _clock(name: str) -> bool:
    return any(part in name for part in CLOCK)


def _parsed(text: str) -> int | float | str:
    """A whole number, a finite float, or the text itself."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


# ------------------------------------------------------------------------------- comparing


def differences(
    one: Numbers,
    two: Numbers,
    *,
    relative: float = 0.0,
    absolute: float = 0.0,
    more: bool = False,
) -> list[str]:
    """A line for each number in which two runs differ.

    With both tolerances 0, equal means equal to the last bit. Otherwise floats a and b may differ
    by `relative` max(|a|, |b|) + `absolute`, hashes are not compared, and all else has to be equal.
    With `more`, `two` may have numbers that `one` has not: a later version logs them.
    """
    exact, found = not (relative or absolute), []
    for name in [*one, *(name for name in two if name not in one and not more)]:
        a, b = (run.get(name, "nothing") for run in (one, two))
        if a == b or not exact and name.endswith("/sha256"):
            continue
        if not exact and isinstance(a, float) and isinstance(b, float):
            if abs(a - b) <= relative * max(abs(a), abs(b)) + absolute:
                continue
        found.append(f"{name}: {a} and {b}")
    return found


def all_numbers(checkout: Path, commands: Iterable[str], folder: Path) -> dict[str, Numbers]:
    """Each command's numbers with the code of `checkout`; the run folders lie in `folder`."""
    folder.mkdir(parents=True)
    found = {}
    for command in commands:
        print(f"{checkout}: {command}", flush=True)
        found[command] = run(checkout, command, folder / command)
    return found


def made_with() -> dict[str, str]:
    """The machine's architecture, and the versions of what computes: other ones round otherwise."""
    packages = ("torch", "numpy", "diffusers", "transformers", "peft", "mujoco", "metaworld")
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in packages}
    return {"system": f"{platform.system()} {platform.machine()}"} | versions


def golden() -> tuple[dict[str, Numbers], list[str]]:
    """The numbers in tests/golden, and in what this machine differs from the one that made them."""
    document = json.loads(GOLDEN.read_text("utf-8"))
    theirs, ours = document["made_with"], made_with()
    return document["numbers"], [
        f"{name} {ours[name]}, the golden numbers are of {theirs[name]}"
        for name in ours
        if ours[name] != theirs[name]
    ]


def main() -> int:
    """0 if nothing differs, else 1 and a line for each number that does."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose code runs; this tree")
    parser.add_argument("--against", type=Path, help="another checkout, compared bit for bit")
    parser.add_argument(
        "--golden", action="store_true", help="compare bit for bit with tests/golden"
    )
    parser.add_argument("--write", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = all_numbers(given.checkout.resolve(), given.only, Path(folder) / "one")
        others = {}
        if given.against:
            others[str(given.against)] = all_numbers(
                given.against.resolve(), given.only, Path(folder) / "two"
            )
    if given.golden:
        others[str(GOLDEN)], elsewhere = golden()
        print(*(f"note: {line}" for line in elsewhere), sep="\n", end="")
    if given.write:
        document = {"made_with": made_with(), "numbers": found}
        given.write.write_text(json.dumps(document, indent=0) + "\n", "utf-8")
    differing = 0
    for other, theirs in others.items():
        for command in given.only:
            lines = differences(found[command], theirs[command])
            differing += len(lines)
            count = len(set(found[command]) | set(theirs[command]))
            print(f"{command}: {count} numbers, {len(lines)} differ from {other}")
            print(*(f"  {line}" for line in lines), sep="\n", end="\n" if lines else "")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
