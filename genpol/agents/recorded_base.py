"""`RecordedBase`: a policy of which only the proposals are here that a recording holds.

`genpol serve --record` keeps the K chunks that a policy proposed at every decision. Targets choose
among those (`Batch.proposed`), so that best-of-K and EXPO's edits are learnt without the policy:
nobody asks it again, and it is never in memory. It is asked again where the result is deployed,
by `genpol serve --upstream ... --edit`.
"""

from __future__ import annotations

from torch import Generator, Tensor

from offline.errors import InputError
from offline.spec import ActionSpec
from offline.types import Obs


class RecordedBase:
    """In the place of the policy. It proposes nothing.

    Args:
        spec: of the chunks.
    """

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = spec

    def reset(self) -> None:
        """Nothing to forget."""

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """Refuses.

        Raises:
            InputError: always.
        """
        raise InputError(
            "--base recorded has the proposals of recorded states alone, and was asked about "
            "another one: pass --steps 0 and no --world-model"
        )

    def commit(self, act: Tensor) -> None:
        """Nothing to remember."""

    def keep(self, rows: Tensor) -> None:
        """Nothing to drop."""
