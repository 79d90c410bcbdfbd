"""Says of each episode of a dataset whether it succeeded, where the dataset does not.

    --success all               every episode succeeded
    --success last-reward       an episode succeeded if its last reward is above 0
    --success FILE.csv          as the file says: episode,success,moment
    --success module:function   as a function of yours says of each `offline.Episode`

A file has one row for each episode that was judged. `episode` is the dataset's own episode index,
`success` is 1, 0 or empty, `moment` is seconds from the episode's start or empty. An episode whose
`success` is empty was skipped and is left out. An episode without a row keeps what the dataset says
of it, and is left out where the dataset says nothing. A success ends at its moment. A file
labels.csv in the folder of a dataset is read without being asked for. Without one, a recording is
what the robot said: the episodes of which it said nothing are left out, where it said anything.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offline.data.episodes import Episode, Episodes
from offline.errors import InputError, shown
from robots.datasets.labelled import Labelled
from robots.importing import import_object, one_line

LABELS = "labels.csv"
HEADER = ("episode", "success", "moment")
FORMS = "all, last-reward, a FILE.csv, or module:function"
_LONGEST = 64 << 20  # bytes of a file

Judge = Callable[[Episode, int], bool | None]
"""(an episode, the dataset's own index of it) -> whether it succeeded; None where it cannot say."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Label:
    """What somebody says of one episode."""

    success: bool | None
    """None: it was skipped."""
    moment: float | None = None
    """Seconds from the episode's start at which it succeeded or failed."""


def read_labels(path: str | Path) -> dict[int, Label]:
    """The labels of a file, by the dataset's episode index.

    Raises:
        InputError: it cannot be read, or a line says something else; names the line.
    """
    path = Path(path).expanduser()
    try:
        with open(path, "rb") as file:
            content = file.read(_LONGEST + 1)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f'cannot read the labels in "{path}": {reason}') from error
    if len(content) > _LONGEST:
        raise InputError(f'"{path}" is larger than {_LONGEST >> 20} MiB, expected a file of labels')
    rows = csv.reader(io.StringIO(text))
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        if header[:2] != list(HEADER[:2]) or header[2:] not in ([], ["moment"]):
            raise InputError(
                f'"{path}" begins with "{shown(",".join(header))}", expected the header '
                f'"{",".join(HEADER)}"'
            )
        labels: dict[int, Label] = {}
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            where = f'"{path}" line {rows.line_num}'
            if len(cells) > len(header):
                raise InputError(f"{where} has {len(cells)} entries, expected {len(header)}")
            episode, label = _label([cell.strip() for cell in cells], where)
            if episode in labels:
                raise InputError(f"{where}: episode {episode} is labelled twice")
            labels[episode] = label
    except csv.Error as error:
        raise InputError(f'"{path}" line {rows.line_num} is no CSV: {one_line(error)}') from error
    return labels


def labels_text(labels: Mapping[int, Label]) -> str:
    """The file that `read_labels` reads, in the order of the episodes."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEADER)
    for episode, label in sorted(labels.items()):
        success = "" if label.success is None else int(label.success)
        rows.writerow((episode, success, "" if label.moment is None else f"{label.moment:.6g}"))
    return text.getvalue()


def labelled(episodes: Episodes, success: str | None = None) -> Episodes:
    """A dataset with the labels that `success` asks for; as it is where there are none.

    Args:
        episodes: any dataset.
        success: see the top of this file; None takes labels.csv of the dataset's folder, if there
            is one, and says so.

    Raises:
        InputError: an unknown form, a file that cannot be read or labels other episodes, or no
            episode that is left.
    """
    if success is None:
        beside = labels_beside(episodes)
        return _as_recorded(episodes) if beside is None else _by_file(episodes, beside)
    if success == "all":
        return Labelled(episodes, lambda episode, position: True)
    if success == "last-reward":
        return Labelled(episodes, _last_reward)
    if success.lower().endswith(".csv") or Path(success).expanduser().is_file():
        return _by_file(episodes, Path(success).expanduser())
    if ":" in success:
        return _by_function(episodes, success)
    raise InputError(f'--success takes {FORMS}; received "{shown(success)}"')


def labels_beside(episodes: Episodes) -> Path | None:
    """labels.csv in the folder of a dataset, if there is one."""
    where = episodes.meta.get("path")
    path = Path(str(where)) / LABELS if where else None
    return path if path is not None and path.is_file() else None


def own_index(episodes: Episodes, position: int) -> int:
    """The dataset's own index of the episode at a position; the position where it has none."""
    own = getattr(episodes, "episode_indices", None)
    return position if own is None else int(own[position])


def _label(cells: list[str], where: str) -> tuple[int, Label]:
    episode, success, moment = (*cells, "", "", "")[:3]
    if not (episode.isascii() and episode.isdigit() and len(episode) < 13):
        raise InputError(f'{where}: the episode is "{shown(episode)}", expected a whole number')
    if success not in ("0", "1", ""):
        raise InputError(f'{where}: success is "{shown(success)}", expected 1, 0 or nothing')
    seconds = None
    if moment:
        try:
            seconds = float(moment)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InputError(
                f'{where}: the moment is "{shown(moment)}", expected seconds from the start of the '
                "episode"
            )
    return int(episode), Label(None if success == "" else success == "1", seconds)


def _by_file(episodes: Episodes, path: Path) -> Labelled:
    """Labels of a file; episodes without a row are read, to see what the dataset says of them."""
    labels = read_labels(path)
    own = {own_index(episodes, position): position for position in range(len(episodes))}
    for index in labels:
        if index not in own:
            raise InputError(
                f'"{path}" labels episode {index}, which the dataset does not have; it has '
                f"{len(own)} episodes, {min(own)} to {max(own)}: are these labels of another one?"
            )
    found: dict[int, bool] = {}
    ends: dict[int, int] = {}
    skipped = silent = 0
    for index, position in own.items():
        label = labels.get(index)
        success = _known(episodes, position) if label is None else label.success
        if success is None:
            skipped, silent = skipped + (label is not None), silent + (label is None)
            continue
        found[position] = success
        if label is not None and label.moment is not None and success:
            ends[position] = _steps(episodes, label.moment, path)
    log.warning(
        '"%s": %d successes and %d failures; left out: %d skipped, %d without a label',
        path,
        sum(found.values()),
        len(found) - sum(found.values()),
        skipped,
        silent,
    )
    return Labelled(
        episodes, lambda episode, position: found[position], rows=list(found), ends=ends
    )


def _as_recorded(episodes: Episodes) -> Episodes:
    """A recording without the episodes of which nobody has said whether they succeeded, such as
    those in which the robot's connection broke. Other datasets, and one without any word, stay."""
    if not hasattr(episodes, "success_of"):
        return episodes
    found = {
        position: success
        for position in range(len(episodes))
        if (success := episodes.success_of(position)) is not None
    }
    if len(found) in (0, len(episodes)):
        return episodes
    log.warning(
        "%s: left out %d of %d episodes, of which nobody has said whether they succeeded",
        episodes.meta.get("path", "the recording"), len(episodes) - len(found), len(episodes),
    )  # fmt: skip
    return Labelled(episodes, lambda episode, position: found[position], rows=list(found))


def _known(episodes: Episodes, position: int) -> bool | None:
    """What the dataset itself says of an episode."""
    if hasattr(episodes, "success_of"):  # without its pictures
        return episodes.success_of(position)
    return episodes[position].success


def _steps(episodes: Episodes, moment: float, path: Path) -> int:
    """The steps that have been taken at a moment, at least 1."""
    fps = episodes.meta.get("fps")
    if not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise InputError(
            f'"{path}" marks moments in seconds, and the dataset does not say how many steps a '
            "second has: leave the moments empty"
        )
    return max(1, math.ceil(moment * fps - 1e-6))


def _last_reward(episode: Episode, position: int) -> bool:
    if str(episode.meta.get("rewards", "")).startswith("missing"):
        raise InputError(
            "--success last-reward needs rewards, and the dataset stores none: label its episodes "
            "(--success FILE.csv), or say that all succeeded (--success all)"
        )
    return bool(episode.rewards[-1] > 0)


def judge_named(name: str) -> Judge:
    """A function of the user's own that says of an episode whether it succeeded; None is no word.

    Raises:
        InputError: there is no such function; later, it fails or returns something else.
    """
    function: Callable[[Episode], Any] = import_object(name, what="a judge of episodes")
    if not callable(function):
        raise InputError(f'--success "{name}" is a {type(function).__name__}, expected a function')

    def judge(episode: Episode, index: int) -> bool | None:
        try:
            said = function(episode)
        except InputError:
            raise
        except Exception as error:  # whatever the user's own function raises
            raise InputError(f"{name} failed on episode {index}: {one_line(error)}") from error
        if said is not None and not isinstance(said, bool | np.bool_):
            raise InputError(
                f"{name} returned {shown(said)} for episode {index}, expected True, False, or "
                "None to leave it out"
            )
        return None if said is None else bool(said)

    return judge


def _by_function(episodes: Episodes, name: str) -> Labelled:
    """What the user's function says of each episode; it is asked once, here."""
    judge = judge_named(name)
    found: dict[int, bool] = {}
    for position in range(len(episodes)):
        said = judge(episodes[position], own_index(episodes, position))
        if said is not None:
            found[position] = said
    if left_out := len(episodes) - len(found):
        log.warning("%s left out %d of %d episodes", name, left_out, len(episodes))
    return Labelled(episodes, lambda episode, position: found[position], rows=list(found))
