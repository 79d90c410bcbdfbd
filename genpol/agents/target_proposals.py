"""`TargetProposals`: where the base candidates of a TD target come from, as cheaply as they may.

    chain          the base policy's own samples
    two-step       its chain in two steps (`genpol.agents.candidates.Draft`)
    student        the answers of a one-step student, taught while the base policy learns
    noise-filter   of N noises, the chain of the one whose student's answer the critic likes best
    cache_age > 0  candidates of a transition serve again (`genpol.agents.candidates`)

The student (`genpol.policies.student`, after FQL, arXiv 2502.02538) answers each noise as the base
policy's chain does, in one pass. As a filter it needs no training of its own against the critic.

Shape legend: B batch, N candidates or noises, H action chunk, A action dimension, D = H * A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from genpol.agents.candidates import CandidateCache, Draft
from genpol.agents.config import TrainConfig
from genpol.policies.policy import ChunkPolicy
from genpol.policies.student import Student
from offline.critics.td import Subset
from offline.draws import normal
from offline.errors import InputError
from offline.networks.normalizer import ObsStats
from offline.networks.optimizers import load_optimizer
from offline.types import Obs, Policy

_OURS = (
    "--candidates and --candidate-dtype change the chain of a policy of our own (genpol clone); a "
    "black box keeps its own: leave them out, its candidates are cached"
)


class TargetProposals:
    """Proposes for the next states of transitions.

    Args:
        base: proposes; its weights are followed.
        config: `candidates`, `candidate_dtype` and `cache_age` say how.
        screen: the critic, for a noise filter.
        forever: the base never changes, so that what was drawn once stays.
        rows: (transitions of the dataset, slots of the replay).

    Raises:
        InputError: a shorter or coarser chain of a policy that is not ours.
    """

    def __init__(
        self,
        base: Policy,
        config: TrainConfig,
        *,
        screen: Subset,
        forever: bool,
        rows: tuple[int, int],
    ) -> None:
        self.spec = base.spec
        self.base = base
        self.count = config.num_candidates
        """Proposals for each target (N); a noise filter leaves one."""
        self.student: StudentProposals | None = None
        if config.candidates in ("student", "noise-filter"):
            if not isinstance(base, ChunkPolicy):
                raise InputError(_OURS)
            sieve = config.candidates == "noise-filter"
            self.base = self.student = StudentProposals(
                base, lr=config.lr, screen=screen if sieve else None, noises=self.count
            )
            self.count = 1 if sieve else self.count
        steps = 2 if config.candidates == "two-step" else None
        coarse = config.candidate_dtype == "bfloat16" and self.student is None
        if steps is not None or coarse:
            if not isinstance(base, ChunkPolicy):
                raise InputError(_OURS)
            self.base = Draft(base, steps=steps, dtype=torch.bfloat16 if coarse else torch.float32)
        ours = isinstance(base, ChunkPolicy)
        self.cache: CandidateCache | None = None
        if sum(rows) and (config.cache_age or not ours):
            self.cache = CandidateCache(
                *rows,
                self.count,
                self.spec.chunk,
                self.spec.dim,
                None if forever else config.cache_age,
            )

    def candidates(
        self, obs: Obs, keys: Tensor | None, now: int, generator: Generator | None
    ) -> Tensor:
        """Base candidates of next states: (B, N, H, A), normalised by `spec`; no gradients.

        Args:
            obs: B next states.
            keys: (B,) of their transitions, which a cache goes by; see `Batch.key`.
            now: updates made so far, which the age of what is cached goes by.
            generator: draws them.
        """
        if self.cache is None:
            return self.base.sample(obs, self.count, generator)
        return self.cache.candidates(
            keys, obs, lambda missing: self.base.sample(missing, self.count, generator), now
        )

    @property
    def by_noise(self) -> Callable[[Obs, Tensor], Tensor] | None:
        """What noise (B, n, D) becomes where that is cheaper than the base policy's chain."""
        if self.student is not None:
            return self.student.student.decode
        return self.base.decode if isinstance(self.base, Draft) else None

    def metrics(self) -> dict[str, Tensor]:
        """Of the cache, where there is one."""
        if self.cache is None:
            return {}
        return {key: torch.tensor(number) for key, number in self.cache.metrics().items()}

    def restandardise(self, stats: ObsStats) -> None:
        """Of the student, where there is one."""
        if self.student is not None:
            self.student.student.restandardise(stats)

    def networks(self) -> list[nn.Module]:
        """The student, where there is one."""
        return [] if self.student is None else [self.student.student]

    def state_dict(self) -> dict[str, Any]:
        """The cache's and the student's."""
        parts = {"cache": self.cache, "student": self.student}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        if self.cache is not None:
            self.cache.load_state_dict(state["cache"])
        if self.student is not None:
            self.student.load_state_dict(state["student"])


class StudentProposals:
    """Candidates by a student, or by the chain of noises that it picks; see the top of the file.

    Args:
        base: the teacher; its weights are followed. A flow, or a diffusion policy (by DDIM).
        lr: of AdamW.
        screen: the critic that sieves noises; None proposes the student's own answers.
        noises: N, drawn for each candidate that is asked for, where there is a sieve.

    Raises:
        InputError: a base policy that is not ours.
    """

    def __init__(
        self, base: ChunkPolicy, *, lr: float, screen: Subset | None = None, noises: int = 8
    ) -> None:
        if not isinstance(base, ChunkPolicy):
            raise InputError(
                "--candidates student and noise-filter need a base policy of our own (genpol "
                "clone), as they have to know what noise becomes; a black box has none"
            )
        self.base, self.spec = base, base.spec
        self.screen, self.noises = screen, noises
        self.student = Student.of(base)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=lr, fused=True)

    def update(self, obs: Obs, generator: Generator) -> dict[str, Tensor]:
        """One step towards the present base policy, on these states."""
        loss = self.student.distill_loss(obs, self.base, generator).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"base/student_loss": loss.detach()}

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """(B, n, H, A), normalised by `spec`; no gradients."""
        if self.screen is None:
            return self.student.sample(obs, n, generator)
        rows, dim = len(next(iter(obs.values()))), self.spec.chunk * self.spec.dim
        like = next(self.student.parameters())
        noise = normal((rows, n * self.noises, dim), generator, like)
        with torch.no_grad():
            answers = self.student.decode(obs, noise)
            scores = self.screen(obs, answers).amin(0)
        best = scores.view(rows, n, self.noises).argmax(-1, keepdim=True)  # (B, n, 1)
        kept = noise.view(rows, n, self.noises, dim).gather(
            2, best[..., None].expand(-1, -1, -1, dim)
        )
        return self.base.decode(obs, kept[:, :, 0])

    def reset(self) -> None:
        """Targets know no episodes."""

    def commit(self, act: Tensor) -> None:
        """Nothing is executed."""

    def keep(self, rows: Tensor) -> None:
        """Nothing is executed."""

    def state_dict(self) -> dict[str, Any]:
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        load_optimizer(self.optimizer, state["optimizer"])
