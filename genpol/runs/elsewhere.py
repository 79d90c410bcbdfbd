"""A run's folder as the processes see it that do not write in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genpol.runs.run import Run

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from genpol.runs.segments import Segments


class Elsewhere(Run):
    """Of the processes of one run, the first has the `Run`. The others do what it does, without
    effect: they neither lock the folder nor read or write in it. It need not be on their machine.

    Args:
        output: the folder.
    """

    def __init__(self, output: Path) -> None:
        self.folder = Path(output)

    def __exit__(self, *exc: object) -> None:
        pass

    def amend(self, options: Mapping[str, Any]) -> None:
        pass

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def truncate(self, step: int) -> None:
        pass

    def log_images(self, step: int, name: str, image: Image) -> Path:
        return self.folder

    def log_video(self, step: int, name: str, path: Path, caption: str = "") -> None:
        pass

    def summary(self, metrics: Mapping[str, float]) -> None:
        pass

    def save_checkpoint(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        keep: int,
        segments: Segments | None = None,
    ) -> Path:
        return self.folder

    def latest_checkpoint(
        self, segments: Segments | None = None
    ) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        return None
