"""Random tiny pipelines saved as users have them, and prompts, shared by the commands' tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """Folders written by `save_pretrained`: name -> path."""
    from tiny_models import tiny_sd, tiny_sdxl

    folder = tmp_path_factory.mktemp("models")
    pipes = {
        "sd": tiny_sd(),
        "sd_v": tiny_sd(1, prediction_type="v_prediction"),
        "sdxl": tiny_sdxl(),
    }
    for name, pipe in pipes.items():
        pipe.save_pretrained(folder / name)
    return {name: folder / name for name in pipes}


@pytest.fixture(scope="session")
def prompts(tmp_path_factory) -> Path:
    """Twelve prompts; commas and quotes included."""
    path = tmp_path_factory.mktemp("prompts") / "animals.txt"
    animals = ["a cat", 'a "big", brown dog', "two owls", "a red fox", "a hen", "a cow"]
    lines = animals + [f"{animal} at night" for animal in animals]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def no_page(monkeypatch):
    """`genpol train` without its page, which takes longer than a tiny run."""
    monkeypatch.setattr("genpol.training.report.write_page", lambda folder: folder)


@pytest.fixture(scope="session", autouse=True)
def no_page_of_finetune(request):
    """`genpol finetune` without its page, for the same reason; `with_page` brings it back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genpol.finetuning.session.write_page", lambda folder: folder)
        yield


@pytest.fixture
def with_page(monkeypatch):
    """`genpol finetune` with its page."""
    from genpol.finetuning import page, session

    monkeypatch.setattr(session, "write_page", page.write_page)
