"""`genpol data info`: what a dataset holds, and whether it can be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from robots.datasets.describe import Description


@dataclass(frozen=True)
class DataInfo:
    """Describe and validate a dataset: robomimic or D4RL HDF5, Minari, LeRobot v3."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """Dataset: a .hdf5 file, a LeRobot folder, minari:NAME, or module:function@PATH of a reader of
    yours."""
    success: str | None = None
    """Who says which episodes succeeded: all, last-reward, a FILE.csv of labels, or module:function
    of each episode. Default: labels.csv in the dataset's folder, else what the dataset says."""
    image_keys: tuple[str, ...] = ()
    """Videos to decode, by the name of their observation. Default: none."""
    json: bool = False
    """Print JSON instead of text."""


def run(config: DataInfo) -> None:
    """Print the description; raises InputError (exit code 2) when the dataset is invalid."""
    import json

    from tqdm import tqdm

    from offline.errors import InputError
    from robots.datasets.describe import describe
    from robots.datasets.open import open_dataset

    episodes = open_dataset(config.data, success=config.success, images=config.image_keys)

    def progress(indices: range) -> tqdm:
        return tqdm(indices, unit="episode", leave=False, disable=len(indices) < 20, delay=2)

    found = describe(episodes, progress=progress)
    print(json.dumps(found.as_dict(), indent=2) if config.json else text(found))
    if found.problems:
        first, *others = found.problems
        more = f" ({len(others)} more)" if others else ""
        name = "" if config.data in first else f"{config.data}: "
        raise InputError(f"{name}{first}{more}")


def text(found: Description) -> str:
    """The description for a reader."""
    spread = found.lengths
    lines = [
        f"{found.path}: {found.format}",
        f"  environment   {found.env or 'not stated'}",
        f"  episodes      {found.episodes} ({found.terminated} ended by themselves)",
        f"  steps         {found.steps}; per episode {spread['min']} to {spread['max']}, "
        f"median {spread['median']:g}",
        f"  success       {outcomes(found.successes)}",
    ]
    for name, counts in found.by_operator.items():
        lines.append(f"    {name:<12}{outcomes(counts)}")
    rewards = found.rewards
    lines.append(
        f"  rewards       {rewards['min']:g} to {rewards['max']:g}, mean return "
        f"{rewards['mean_return']:g}"
    )
    if found.splits:
        splits = ", ".join(f"{name} {count}" for name, count in found.splits.items())
        lines.append(f"  splits        {splits}")
    lines.append("  observations")
    for key, seen in found.observations.items():
        shape = "x".join(map(str, seen["shape"]))
        lines.append(f"    {key:<24}{shape:<14}{seen['dtype']}")
    lines += actions(found)
    if found.languages:
        lines.append(f"  instructions  {len(found.languages)}")
        for sentence, count in list(found.languages.items())[:5]:
            lines.append(f"    {count:>6}  {sentence}")
        if len(found.languages) > 5:
            lines.append(f"            and {len(found.languages) - 5} more")
    if found.env_args:
        lines.append(f"  env_args      {_short(str(found.env_args))}")
    lines.append(f"  sha256        {found.content_hash}")
    for kind in ("notes", "warnings", "problems"):
        for line in getattr(found, kind)[:10]:
            lines.append(f"  {kind[:-1]}: {line}")
    return "\n".join(lines)


def outcomes(counts: dict[str, int]) -> str:
    """Such as "40 of 120 (33%)"."""
    known = counts["yes"] + counts["no"]
    if not known:
        return "not stated"
    unknown = f", {counts['unknown']} not stated" if counts["unknown"] else ""
    return f"{counts['yes']} of {known} ({counts['yes'] / known:.0%}){unknown}"


def actions(found: Description) -> list[str]:
    """The table of the action's dimensions."""
    about = found.actions
    if about["dim"] is None:
        return ["  actions       none that can be read"]
    source = "" if about["spec_from"] == "file" else " (bounds guessed from the data)"
    chunk = f", chunks of {about['chunk']}" if about["chunk"] > 1 else ""
    if "flattened_chunk" in about:
        chunk = f", each {about['flattened_chunk']} actions flattened"
    columns = ("low", "min", "p01", "p99", "max", "high")
    lines = [
        f"  actions       A={about['dim']}{chunk}{source}",
        "    " + " " * 16 + "".join(f"{name:>9}" for name in columns),
    ]
    for i, each in enumerate(about["dimensions"]):
        name = each["name"] or ("gripper" if each["gripper"] else "")
        numbers = "".join(f"{each[column]:>9.3g}" for column in columns)
        lines.append(
            f"    {i:<4}{name[:12]:<12}{numbers}{'  constant' if each['constant'] else ''}"
        )
    return lines


def _short(line: str, width: int = 160) -> str:
    return line if len(line) <= width else line[: width - 3] + "..."
