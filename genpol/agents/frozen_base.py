"""`FrozenBase`: someone else's policy as the base of an agent that learns around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Generator, Tensor

from offline.errors import SpecError
from offline.spec import ActionSpec
from offline.types import HasGenerators, Obs, Policy


class FrozenBase:
    """A black box that proposes in the agent's units, with a second one for side trips.

    A policy that remembers its episode cannot be evaluated in the middle of a training episode,
    nor asked about states of a replay: both would break off what it remembers. So a second
    instance of the same policy answers those.

    Args:
        policy: acts while training.
        spare: another instance of it.
        spec: of the agent's chunks; what the policy proposes is clipped to its bounds.

    Raises:
        SpecError: the policy's actions cannot be the environment's.
    """

    def __init__(self, policy: Policy, spare: Policy, spec: ActionSpec) -> None:
        if policy.spec.dim != spec.dim:
            raise SpecError(
                f"--base has actions of A={policy.spec.dim}, the environment takes A={spec.dim}: "
                "is it a policy of another task?"
            )
        if policy.spec.chunk < spec.chunk:
            raise SpecError(
                f"--base proposes chunks of H={policy.spec.chunk} actions, fewer than "
                f"--action-chunk {spec.chunk}: pass --action-chunk {policy.spec.chunk}"
            )
        self.spec = spec
        self._training, self._spare = policy, spare
        self._now = policy

    @property
    def for_targets(self) -> Policy:
        """Proposes for states of a replay: every call as at the beginning of an episode."""
        return _Memoryless(FrozenBase(self._spare, self._spare, self.spec))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Meanwhile the second instance answers; the first stays in its episode."""
        self._now = self._spare
        try:
            yield
        finally:
            self._now = self._training

    def reset(self) -> None:
        self._now.reset()

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """(B, n, H, A), normalised by `spec`."""
        return self._ours(self._now.sample(_on_the_cpu(obs), n, generator))

    def sample_anew(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """As `reset` and `sample`; a policy that can answer states of no episode is told so."""
        anew = getattr(self._now, "sample_anew", None)
        if anew is not None:
            return self._ours(anew(_on_the_cpu(obs), n, generator))
        self.reset()
        return self.sample(obs, n, generator)

    def generators(self) -> list[Generator]:
        """The random streams of both instances, where they have any of their own."""
        both = (self._training, self._spare)
        return [
            g for policy in both if isinstance(policy, HasGenerators) for g in policy.generators()
        ]

    def _ours(self, act: Tensor) -> Tensor:
        act = act[:, :, : self.spec.chunk].float()
        return self.spec.normalize(self.spec.clip(self._now.spec.unnormalize(act)))

    def commit(self, act: Tensor) -> None:
        self._now.commit(self._now.spec.normalize(self.spec.unnormalize(act.cpu())))

    def keep(self, rows: Tensor) -> None:
        self._now.keep(rows)


def _on_the_cpu(obs: Obs) -> Obs:
    """As an environment shows them, wherever the agent learns: black boxes move them themselves."""
    return {key: value.cpu() for key, value in obs.items()}


class _Memoryless:
    """A policy that begins anew at every call."""

    def __init__(self, policy: FrozenBase) -> None:
        self.policy, self.spec = policy, policy.spec

    def reset(self) -> None:
        self.policy.reset()

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        return self.policy.sample_anew(obs, n, generator)

    def commit(self, act: Tensor) -> None:
        """Nothing to remember."""

    def keep(self, rows: Tensor) -> None:
        """Nothing to drop."""
