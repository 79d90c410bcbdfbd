"""Runs of `genpol train` for the tables: finished once, resumed when cut off, one process each."""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.results_table import Table, write_block

METRICS = ("eval/success", "eval/return", "time/cpu_seconds")


@contextmanager
def claimed(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether no other process is at work on `folder`; it is this one's until the block ends.

    Args:
        folder: claimed through a file beside it.
        wait: until the other is done.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def finish(folder: Path, options: dict[str, Any], threads: int = 1) -> None:
    """Train in `folder` with the options of `genpol train`, or go on with what is there.

    Raises:
        SystemExit: what is there was begun with other options, so its row would be mislabelled.
    """
    from genpol.commands.train import command as train
    from offline.threads import use_threads

    use_threads(threads)  # for folders from before runs had a number of their own
    _require_same_options(folder, options)
    if (folder / "summary.json").exists():
        return
    if any((folder / "checkpoints").glob("step-*")):
        train.run(train.Train(resume=folder))
    else:
        shutil.rmtree(folder, ignore_errors=True)
        train.run(train.Train(output=folder, threads=threads, **options))


def _require_same_options(folder: Path, options: dict[str, Any]) -> None:
    from genpol.commands.train.options import Train

    if not (folder / "config.json").exists():
        return
    stored, usual = json.loads((folder / "config.json").read_text()), Train()
    for name, value in json.loads(json.dumps(options, default=str)).items():
        begun = stored.get(name, getattr(usual, name))  # older runs know fewer options
        if begun != value:
            raise SystemExit(
                f"{folder} was begun with {name} {begun}, this run is to have {value}: remove it"
            )


def evaluations(folder: Path, metrics: tuple[str, ...] = METRICS) -> list[dict[str, float]]:
    """The evaluations in a run's metrics.csv, each with its step.

    Of a metric that was not logged at the same step it is the latest before it; NaN without any.
    """
    latest = dict.fromkeys(metrics, float("nan"))
    found: list[dict[str, float]] = []
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            latest |= {key: float(row[key]) for key in metrics if row.get(key)}
            if row.get("eval/return"):
                found.append({"step": int(row["step"])} | latest)
    return found


def fill(
    table: Table,
    planned: Iterable[tuple[dict[str, Any], dict[str, Any]]],
    work: Path,
    metrics: tuple[str, ...],
    threads: int = 1,
) -> None:
    """Finish every planned run that has no rows yet, and add its evaluations to the table.

    Args:
        table: with the columns of a key, of `metrics`, "step" and "flags".
        planned: (key, options of `genpol train`) of each run; "seed" is in both.
        work: where the run folders are, each named by its key.
        metrics: columns of metrics.csv; of those that are not logged with an evaluation, the
            latest before it.
        threads: of PyTorch.
    """
    for key, options in planned:
        folder = work / "-".join(str(value) for value in key.values())
        with claimed(folder) as mine:
            if not mine or table.has(**key):
                continue
            finish(folder, options | {"seed": key["seed"], "wandb": "disabled"}, threads)
            flags = json.dumps(options, sort_keys=True)
            rows = evaluations(folder, metrics)
            table.add(*(key | row | {"flags": flags} for row in rows))
        print(f"{folder.name}: return {rows[-1]['eval/return']:.4g}", flush=True)


def table_command(
    doc: str,
    table: Table,
    planned: Callable[[Path], Iterable[tuple[dict[str, Any], dict[str, Any]]]],
    report: Callable[[list[dict[str, str]]], str],
    *,
    metrics: tuple[str, ...],
    marker: str,
) -> None:
    """The command line of a table: fill it, or write it into docs/RESULTS.md.

    Args:
        doc: of the script.
        table: to fill.
        planned: the folder of runs -> (key, options of `genpol train`) of each run.
        report: rows -> Markdown.
        metrics: see `fill`.
        marker: of its place in docs/RESULTS.md.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME=VALUE", help="such as env=Hopper-v5"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs") / marker)
    parser.add_argument("--report", action="store_true", help="write the table of docs/RESULTS.md")
    options = parser.parse_args()
    if options.report:
        write_block(marker, report(table.rows()))
        return
    wanted = [pair.split("=", 1) for pair in options.only]
    chosen = [
        (key, flags)
        for key, flags in planned(options.work)
        if (options.seeds is None or key["seed"] in options.seeds)
        and all(str(key[name]) == value for name, value in wanted)
    ]
    fill(table, chosen, options.work, metrics, options.threads)
