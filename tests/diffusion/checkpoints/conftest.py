"""A tiny Stable Diffusion as a folder, and changed copies of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory) -> Path:
    from tiny_models import tiny_sd

    folder = tmp_path_factory.mktemp("checkpoints") / "sd"
    tiny_sd().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(sd_folder, tmp_path) -> Callable[..., Path]:
    """A copy whose JSON files have other values: `copied(**{"unet/config.json": {...}})`."""

    def copy(**changes: dict[str, Any]) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(sd_folder, folder)
        for name, values in changes.items():
            path = folder / name
            path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return folder

    return copy
