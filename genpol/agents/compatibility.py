"""Do a policy and a critic that were trained earlier fit what is to be trained now?"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from offline.errors import SpecError
from offline.spec import ActionSpec


def require_observations(
    given: Mapping[str, tuple[int, ...]], needed: Mapping[str, tuple[int, ...]], flag: str
) -> None:
    """Check that what `flag` names gets the observations that it was trained with.

    Raises:
        SpecError: names the key, what was expected and what there is.
    """
    for key, shape in needed.items():
        if key not in given:
            raise SpecError(
                f'{flag} was trained with the observation "{key}" {tuple(shape)}, here there are '
                f"{', '.join(sorted(given))}: is it of another task, or left out by --obs-keys?"
            )
        if tuple(given[key]) != tuple(shape):
            raise SpecError(
                f'the observation "{key}" is {tuple(given[key])} here, {flag} was trained with '
                f"{tuple(shape)}: is it of another task?"
            )


def require_same_actions(theirs: ActionSpec, spec: ActionSpec, flag: str) -> None:
    """Check that what `flag` names was trained on chunks normalised as `spec` normalises them.

    Raises:
        SpecError: another chunk, other dimensions, or another scale.
    """
    if theirs.dim != spec.dim:
        raise SpecError(
            f"{flag} has actions of A={theirs.dim}, the environment takes A={spec.dim}: is it of "
            "another task?"
        )
    if theirs.chunk != spec.chunk:
        raise SpecError(
            f"{flag} was trained on chunks of H={theirs.chunk} actions: pass --action-chunk "
            f"{theirs.chunk}, not {spec.chunk}"
        )
    ends = torch.tensor([[-1.0] * spec.dim, [1.0] * spec.dim], dtype=torch.float64)
    apart = (theirs.unnormalize(ends) - spec.unnormalize(ends)).abs().amax(0)
    wrong = (apart > 1e-4 * (ends[1] - ends[0])).nonzero().flatten().tolist()
    if wrong:
        low, high = (theirs.unnormalize(end)[wrong[0]].item() for end in ends)
        raise SpecError(
            f"{flag} maps {low:g} to {high:g} of {spec.describe(wrong[0])} to [-1, 1], the "
            f"environment's bounds are {spec.low[wrong[0]]:g} to {spec.high[wrong[0]]:g}: train "
            "it again with --scale bounds, for this environment"
        )
