"""What a pipeline says of itself before its weights are loaded: its class and its denoiser."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion.families import FAMILIES, family_class
from diffusion.families.family import Family
from diffusion.loading import SHIPPED, denoiser_config


@dataclass(frozen=True)
class ModelFacts:
    """A model's name, its model_index.json and its denoiser's configuration; empty if unread."""

    name: str
    index: dict[str, Any] = field(default_factory=dict)
    denoiser: dict[str, Any] = field(default_factory=dict)

    def recommended(self, family: type[Family] | None = None) -> dict[str, Any]:
        """What the family recommends for this model; nothing where the family is not known."""
        kind = family
        if kind is None:
            pipeline = self.index.get("_class_name")
            if pipeline not in FAMILIES:
                return {}  # loading says what is wrong with it, in better words
            kind = family_class(pipeline)
        found = kind.recommended_for(self.name, self.index, self.denoiser)
        return dict(found) | {"guided_by_input": kind.guided_by_input, "flow": kind.flow}


def facts_of(model: str) -> ModelFacts:
    """Of a shipped name or a folder, or of a hub id, of which two small files are fetched."""
    folder = Path(SHIPPED.get(model, model))
    if folder.is_dir():
        return ModelFacts(model, _read(folder / "model_index.json"), denoiser_config(model))
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        return ModelFacts(model)
    index = _fetched(model, "model_index.json")
    part = next((p for p in ("unet", "transformer") if p in index), None)
    return ModelFacts(model, index, _fetched(model, f"{part}/config.json") if part else {})


def facts_of_pipeline(pipe: Any, name: str) -> ModelFacts:
    """Of a pipeline that is loaded."""
    index = {"_class_name": type(pipe).__name__} | dict(getattr(pipe, "config", {}))
    part = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    known = str(getattr(pipe, "config", {}).get("_name_or_path") or name)
    return ModelFacts(known, index, dict(getattr(part, "config", {})))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fetched(model: str, name: str) -> dict[str, Any]:
    """A file of a hub id: from the cache, or fetched; empty where neither works."""
    from huggingface_hub import hf_hub_download

    try:
        return _read(Path(hf_hub_download(model, name)))
    except Exception:  # no network, no such repository, no such file: loading says which
        return {}
