"""A trained agent as a policy to deploy: what a run of `genpol train` leaves behind, put together.

    RUN/policy/   a policy by itself: the base policy's average, an actor, a student
    RUN/value/    the critic
    RUN/edit/     EXPO's edit policy: edit.safetensors, edit.json

EXPO's policy is all three; IDQL's and best-of-N's are the first two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Generator

from genpol.agents import dsrl
from genpol.agents.edit import Editor, EditPolicy
from genpol.policies.policy import load_policy
from genpol.steering.select import argmax
from genpol.steering.steered import Steered
from offline.critics.td import Encoded, Subset
from offline.critics.value import ValueFunction
from offline.documents import as_document, read_document
from offline.errors import InputError
from offline.learning import actor_policy
from offline.model_files import LARGEST, build, load_model, save_model
from offline.types import Policy

WEIGHTS, CONFIG, FORMAT = "edit.safetensors", "edit.json", "genpol edit policy 1"


@dataclass(frozen=True)
class EditDocument:
    """What `save_edit` writes."""

    features: Annotated[int, Ge(0), Le(LARGEST)]
    action: Annotated[int, Ge(1), Le(LARGEST)]
    hidden: tuple[Annotated[int, Ge(1), Le(LARGEST)], ...]
    clip: bool
    candidates: Annotated[int, Ge(1), Le(LARGEST)]
    edits: Annotated[int, Ge(0), Le(LARGEST)]
    layer_norm: bool = True  # which older ones all have


def save_edit(policy: EditPolicy, folder: Path, *, candidates: int, edits: int) -> None:
    """Write an edit policy, with how many candidates it was trained to serve.

    Args:
        policy: to save.
        folder: made if absent.
        candidates: samples of the base policy for each decision (N).
        edits: of each of them.
    """
    document = {
        "format": FORMAT,
        "features": policy.features,
        "action": policy.dim,
        "hidden": list(policy.hidden),
        "clip": policy.clip,
        "layer_norm": policy.move.layer_norm,
        "candidates": candidates,
        "edits": edits,
    }
    save_model(folder, WEIGHTS, policy, CONFIG, document)


def load_edit(folder: Path, *, device: str = "cpu") -> tuple[EditPolicy, dict[str, Any]]:
    """What `save_edit` wrote: the policy, in eval mode, and its document.

    Raises:
        InputError: a file is missing or torn.
    """
    document, weights = load_model(folder, WEIGHTS, CONFIG, kind="edit policy", form=FORMAT)
    said = as_document(document, EditDocument, f"cannot read the edit policy in {folder}")

    def make() -> EditPolicy:
        return EditPolicy(
            said.features,
            said.action,
            said.hidden,
            scale=1.0,
            clip=said.clip,
            layer_norm=said.layer_norm,
        )

    policy = build(make, weights, folder / WEIGHTS, CONFIG, kind="edit policy")
    return policy.to(device).eval().requires_grad_(False), document


def is_expo(folder: str | Path) -> bool:
    """Whether a folder holds an EXPO run: a critic and an edit policy beside the base policy."""
    return (Path(folder) / "edit" / CONFIG).is_file()


def load_trained(folder: str | Path, *, device: str = "cpu") -> Policy:
    """The policy in a run's folder, whether `genpol clone` or `genpol train` left it there.

    Args:
        folder: of a run, or of its policy alone.
        device: where it acts.

    Raises:
        InputError: no such folder, something else in it, or a part of it missing or torn.
    """
    folder = Path(folder)
    if is_expo(folder):
        return load_expo(folder, device=device)
    loaders: dict[str, Callable[..., Policy]] = {
        actor_policy.KIND: actor_policy.ActorPolicy.load,
        dsrl.KIND: dsrl.NoisePolicy.load,
    }
    for place in (folder, folder / "policy"):
        try:
            kind = read_document(place / "policy.json", dict[str, Any]).get("kind")
        except InputError:
            continue  # load_policy says what is wrong with it
        if isinstance(kind, str) and kind in loaders:
            return loaders[kind](place, device=device)
    return load_policy(folder, device=device)


def load_expo(
    folder: str | Path, *, base: Policy | None = None, device: str = "cpu"
) -> Steered[Encoded]:
    """The on-the-fly policy of a run of `genpol train --agent expo`.

    Args:
        folder: of the run.
        base: the black box that the run started from; default the run's own policy/.
        device: where it acts.

    Raises:
        InputError: a part of it is missing or torn.
    """
    folder = Path(folder)
    policy, document = load_edit(folder / "edit", device=device)
    value = ValueFunction.load(folder / "value", device=device)
    if base is None:
        base = load_policy(folder / "policy", device=device)
    critic = Subset(value, value.ensemble, Generator().manual_seed(0))
    editor = Editor(policy, document["edits"])
    with torch.no_grad():
        return Steered(
            base,
            critic,
            document["candidates"],
            argmax(),
            edit=editor,
            clip=policy.clip,
            check=False,
        )
