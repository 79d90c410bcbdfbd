"""`Choice`: what decides among a served policy's proposals: a value, value and edits, or nothing.

    RUN/value/    the critic, of `genpol value` or `genpol train`
    RUN/edit/     EXPO's edits of proposals, which know the critic's encoding

Edits were learnt with the critic beside them, so both are taken from one run. The policy may be
any: a robot's own server, a clone, a black box.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from genpol.agents.deploy import CONFIG as EDIT_CONFIG
from genpol.agents.deploy import load_edit
from genpol.agents.edit import Editor
from genpol.steering.action_units import Units
from genpol.steering.around import candidates_of
from genpol.steering.select import Select
from genpol.steering.steered import Edits, Steered
from offline.critics.td import Encoded, Subset
from offline.critics.value import CONFIG as VALUE_CONFIG
from offline.critics.value import ValueFunction
from offline.documents import read_document
from offline.errors import InputError
from offline.model_files import HASH, UNFINISHED
from offline.spec import ActionSpec
from offline.types import Obs, Policy


@dataclass(frozen=True)
class Choice:
    """What chooses."""

    value: Any = None
    """A critic; None where nothing has been learnt yet."""
    obs_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """What it observes."""
    editor: Editor | None = None
    candidates: int | None = None
    """Proposals that the edits were trained to serve; None where there are none."""
    clip: bool = True
    """Whether edits are clipped to the bounds."""
    mark: str = ""
    """Tells what was loaded from anything else."""

    @property
    def spec(self) -> ActionSpec:
        """Of the chunks that the value scores."""
        return self.value.spec

    def steer(
        self,
        base: Policy,
        num_candidates: int,
        select: Select,
        *,
        gate: float | None = None,
        deadline: float | None = None,
        noise: float = 0.0,
    ) -> Steered[Any]:
        """The policy, steered so; arguments are those of `Steered`. With `noise` the candidates lie
        around one proposal (see `genpol.steering.around`), where a value chooses and nothing edits.
        """
        if self.editor is None:
            known = self.value is not None
            critic = self.value if known else NoValue(base.spec)
            count, near = candidates_of(
                base.spec, critic.spec, num_candidates, noise if known else 0.0
            )
            return Steered(
                base, critic, count, select, edit=near, gate=gate, deadline=deadline, check=known
            )
        value: ValueFunction = self.value
        with torch.no_grad():
            return Steered(
                base,
                Subset(value, value.ensemble, Generator().manual_seed(0)),  # all heads: none drawn
                num_candidates,
                select,
                edit=EditInUnits(self.editor, base.spec, value.spec),
                gate=gate,
                deadline=deadline,
                clip=self.clip,
                check=False,
            )


class EditInUnits:
    """Edits for a policy that normalises its actions otherwise than the critic.

    Args:
        editor: edits chunks that are normalised by the critic's spec.
        policy, critic: their specs.
    """

    def __init__(self, editor: Editor, policy: ActionSpec, critic: ActionSpec) -> None:
        self.editor = editor
        self._there, self._back = Units(policy, critic), Units(critic, policy)

    def __call__(self, features: Encoded, act: Tensor, generator: Generator | None) -> Edits:
        """(B, N, H, A) -> (B, N n, H, A), both normalised by the policy's spec."""
        if self._there.same:
            return self.editor(features, act, generator)
        edits = self.editor(features, self._there.convert(act, act.device), generator)
        return Edits(self._back.convert(edits.act, edits.act.device), edits.log_prob)


class NoValue:
    """A critic that knows nothing: all chunks are worth the same.

    It stands where a value will be, so that a policy's candidates are drawn, and may be recorded,
    before there is one.

    Args:
        spec: of the policy's chunks.
    """

    obs_shapes: dict[str, tuple[int, ...]] = {}

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = spec

    def encode(self, obs: Obs) -> Tensor:
        """Nothing."""
        return torch.zeros(1)

    def score(self, features: Tensor, act: Tensor) -> Tensor:
        """(B, K, H, A) -> zeros (1, B, K)."""
        return act.new_zeros(1, *act.shape[:2])

    def __call__(self, obs: Obs, act: Tensor) -> Tensor:
        return self.score(self.encode(obs), act)


def load_choice(folder: str | Path, *, device: str = "cpu") -> Choice:
    """The value in a run's folder, with its edits where the run left some.

    Raises:
        InputError: there is no value, or a part is missing, torn, or of another run.
    """
    folder = Path(folder)
    mark = mark_of(folder)
    value = ValueFunction.load(folder, device=device)
    if not (folder / "edit" / EDIT_CONFIG).is_file():
        return Choice(value, value.obs_shapes, mark=mark or "")
    policy, document = load_edit(folder / "edit", device=device)
    size = value.spec.chunk * value.spec.dim
    if (policy.features, policy.dim) != (value.encoder.dim, size):
        raise InputError(
            f"the edits in {folder / 'edit'} take {policy.features} features and {policy.dim} "
            f"numbers of an action, the value beside them has {value.encoder.dim} and {size}: are "
            "they of two runs?"
        )
    editor = Editor(policy, document["edits"])
    return Choice(value, value.obs_shapes, editor, document["candidates"], policy.clip, mark or "")


def load_edits(folder: str | Path, *, device: str = "cpu") -> Choice:
    """The same of a run that must have edits.

    Raises:
        InputError: it has none; or see `load_choice`.
    """
    if not (Path(folder) / "edit" / EDIT_CONFIG).is_file():
        raise InputError(
            f"{folder} holds no edits (no edit/{EDIT_CONFIG}): pass the --output of `genpol train "
            "--agent expo`"
        )
    return load_choice(folder, device=device)


def mark_of(folder: Path) -> str | None:
    """A hash of what a run's folder holds, by the hashes that its documents say.

    Nothing is loaded. None where there is no value yet, where the run that learns it is unfinished,
    or where a document is just being written.
    """
    said: list[str] = []
    for kind, name in (("value", VALUE_CONFIG), ("edit", EDIT_CONFIG)):
        path = _document(folder, kind, name)
        if path is None:
            if kind == "value":
                return None
            continue
        try:
            entries = read_document(path, dict[str, Any])
        except InputError:
            return None
        meta = entries.get("meta")
        if isinstance(meta, dict) and UNFINISHED in meta:
            return None
        said += [kind, str(entries.get(HASH, ""))]
    return hashlib.sha256(" ".join(said).encode()).hexdigest()[:16]


def _document(folder: Path, kind: str, name: str) -> Path | None:
    places: Sequence[Path] = [folder / kind / name]
    if kind == "value":
        places = [*places, folder / name]
    for path in places:
        if path.is_file() and (kind == "edit" or (path.parent / "value.safetensors").is_file()):
            return path
    return None
