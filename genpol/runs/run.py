"""The run folder: everything a run leaves behind, the same for every command.

config.json    the resolved configuration, format, versions, git hash, command line
metrics.csv    one row per log step, first column `step`
summary.json   final metrics, flat, numbers
checkpoints/   step-000010/{state.safetensors, state.json}, segments/
samples/       pictures
.lock          while a process is at work in the folder, see `genpol.runs.lock`
wandb/         wandb's own files, which get the same numbers under the same names
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from genpol import __version__
from genpol.runs import checkpoints
from genpol.runs.interrupts import InterruptGuard
from genpol.runs.lock import FolderLock
from genpol.runs.metrics import MetricsCsv
from genpol.runs.wandb_log import WandbLog, WandbMode
from offline.documents import as_document, read_document
from offline.errors import InputError, shown
from offline.files import disk_errors, write_beside

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from genpol.runs.segments import Segments

__all__ = ["InterruptGuard", "Run", "WandbMode", "read_config"]

_REMEDY = "Free some space or choose another --output; continue a started run with --resume"


class Run:
    """One run's folder, as a context manager.

    Make it once the inputs have been checked: from then on the folder counts as taken. A run that
    fails before it has logged or saved anything gives the folder back.

    Args:
        output: the folder; made if absent.
        config: the resolved configuration, one entry per option; paths are written as text.
        command: the command's name, such as "finetune".
        wandb: where the numbers go as well. None: `$WANDB_MODE`, else online when logged in,
            else offline with one line saying how to sync.
        resume: go on in a folder that holds a run; its config.json stays as it is.

    Raises:
        InputError: the folder holds a run and `resume` is off, or holds none and `resume` is on;
            another process is at work in it; it cannot be written; wandb was asked to be online
            and nobody is logged in.
    """

    def __init__(
        self,
        output: Path,
        config: Mapping[str, Any],
        *,
        command: str,
        wandb: WandbMode | None,
        resume: bool = False,
    ) -> None:
        self.folder = Path(output)
        self._resumed = resume
        self._since: int | None = None  # step of the checkpoint saved or gone on from last
        self.used = False
        """Whether the folder holds work beside rows and checkpoints, which is to stay."""
        self._lock = _claim(self.folder, resume)
        try:
            self._open(_document(config, command), wandb)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, document: dict[str, Any], wandb: WandbMode | None) -> None:
        # Before config.json, so that a refusal by wandb leaves the folder free.
        self._wandb = WandbLog(self.folder, document, wandb)
        with disk_errors(f"cannot write in {self.folder}", _REMEDY):
            if not self._resumed:
                text = json.dumps(document, indent=2, default=str) + "\n"
                write_beside(self.folder / "config.json", text.encode())
            elif self._stored().get("format") != FORMAT:
                self.amend({"format": FORMAT})  # as what is written from now on
            self._metrics = MetricsCsv(self.folder / "metrics.csv")

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        unused = self._metrics.empty and not (self.folder / "checkpoints").exists()
        unused = unused and not self.used
        self._metrics.close()
        if error is not None and unused and not self._resumed:
            (self.folder / "metrics.csv").unlink(missing_ok=True)
            (self.folder / "config.json").unlink(missing_ok=True)
        try:
            self._wandb.finish(exit_code=0 if error is None else 1)
        finally:  # it may take minutes, which Ctrl-C cuts short
            self._lock.release()

    def amend(self, options: Mapping[str, Any]) -> None:
        """Change options in config.json, such as the epochs of a run that is being extended."""
        path = self.folder / "config.json"
        document = self._stored() | dict(options)
        with disk_errors(f"cannot write {path}", _REMEDY):
            write_beside(path, (json.dumps(document, indent=2, default=str) + "\n").encode())

    def _stored(self) -> dict[str, Any]:
        return read_document(self.folder / "config.json", dict[str, Any])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row to metrics.csv (or to its last row, if `step` is the same) and to wandb.

        Raises:
            InputError: the disk refuses.
            ValueError: `step` is below the last one logged.
        """
        with disk_errors(f"cannot write {self._metrics.path}", _REMEDY):
            self._metrics.log(step, metrics)
        self._wandb.log(step, metrics)

    def truncate(self, step: int) -> None:
        """Drop the rows of metrics.csv after `step`, the step of the checkpoint resumed from."""
        with disk_errors(f"cannot write {self._metrics.path}", _REMEDY):
            self._metrics.truncate(step)

    def log_images(self, step: int, name: str, image: Image) -> Path:
        """Save a picture (usually a grid) as samples/NAME-step-000010.png, and to wandb as NAME.

        Returns:
            The PNG's path; a "/" in the name is a "_" there.
        """
        path = self.folder / "samples" / f"{name.replace('/', '_')}-step-{step:06d}.png"
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        with disk_errors(f"cannot write {path}", _REMEDY):
            path.parent.mkdir(exist_ok=True)
            write_beside(path, buffer.getvalue())
        self._wandb.image(step, name, image)
        return path

    def log_video(self, step: int, name: str, path: Path, caption: str = "") -> None:
        """Show a film that is already in the folder (mp4 or gif) in wandb as NAME."""
        self._wandb.video(step, name, path, caption)

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Write summary.json, flat, and wandb's summary. JSON has no NaN: it becomes null."""
        numbers = {k: int(v) if isinstance(v, int) else float(v) for k, v in metrics.items()}
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        path = self.folder / "summary.json"
        with disk_errors(f"cannot write {path}", _REMEDY):
            write_beside(path, (json.dumps(finite, indent=2) + "\n").encode())
        self._wandb.summary(numbers)

    def save_checkpoint(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        keep: int,
        segments: Segments | None = None,
    ) -> Path:
        """Write checkpoints/step-.../, whole or not at all; see `genpol.runs.checkpoints.save`."""
        path = checkpoints.save(
            self.folder / "checkpoints", step, tensors, state, keep, segments, self._since
        )
        self._since = step
        return path

    def latest_checkpoint(
        self, segments: Segments | None = None
    ) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest readable (step, tensors, state); see `genpol.runs.checkpoints.latest`."""
        found = checkpoints.latest(self.folder / "checkpoints", segments)
        self._since = None if found is None else found[0]
        return found


FORMAT = "genpol run 2"  # of the folder, checkpoints included
_OLDER = "genpol run 1"  # can be gone on with; folders that name no format have this one
_DOCUMENT = ("format", "command", "command_line", "versions", "git")  # beside the options


@dataclass(frozen=True)
class _About:
    """What config.json says beside the options."""

    command: str
    format: Any = _OLDER
    versions: dict[str, Any] = field(default_factory=dict)


def read_config(folder: Path, command: str) -> dict[str, Any]:
    """The options of the run in `folder`, for resuming it.

    Raises:
        InputError: no run there, not readable, of another format, or another command's.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise InputError(
            f"{folder} holds no run: it has no config.json. Pass the --output of an earlier run"
        )
    what = f"{path} is not a run's configuration"
    document = read_document(path, dict[str, Any], what)
    about = as_document(document, _About, what)
    theirs, form = about.command, about.format
    if form not in (FORMAT, _OLDER):
        version = document.get("versions", {}).get("genpol", "of another version")
        raise InputError(
            f'{folder} holds a run in the format "{form}", written by genpol {version}; this is '
            f'genpol {__version__}, which reads "{FORMAT}": resume the run with the version that '
            "wrote it"
        )
    if theirs != command:
        raise InputError(
            f"{folder} holds a run of `genpol {shown(theirs)}`, not of `genpol {command}`"
        )
    return {key: value for key, value in document.items() if key not in _DOCUMENT}


def _document(config: Mapping[str, Any], command: str) -> dict[str, Any]:
    if taken := set(config) & set(_DOCUMENT):
        raise ValueError(f"config.json needs these names for itself: {sorted(taken)}")
    versions = {"python": platform.python_version(), "genpol": __version__}
    for package in ("torch", "diffusers", "transformers", "peft"):
        versions[package] = importlib.metadata.version(package)
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    about = (FORMAT, command, shlex.join(words), versions, _git_hash())
    return dict(config) | dict(zip(_DOCUMENT, about, strict=True))


def _git_hash() -> str | None:
    """The commit of the repository this file is tracked in; None when installed elsewhere."""
    git = ["git", "-C", str(Path(__file__).parent)]
    tracked, head = ["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"]
    try:
        for question in (tracked, head):
            answer = subprocess.run(git + question, capture_output=True, text=True, timeout=10)
            if answer.returncode:
                return None
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip()


def _claim(folder: Path, resume: bool) -> FolderLock:
    """Make the folder and lock it, or raise InputError if it is not this run's to write in."""
    names = ("config.json", "metrics.csv", "summary.json", "checkpoints")
    if resume and not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no run to resume: it has no config.json")
    with disk_errors(f"cannot make the output folder {folder}", "Pass another --output"):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    if not resume and any((folder / name).exists() for name in names):
        lock.release()
        kind = "a finished" if (folder / "summary.json").exists() else "an unfinished"
        raise InputError(f"{folder} already holds {kind} run: pass another --output or --resume")
    return lock
