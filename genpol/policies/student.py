"""`Student`: a policy of one network pass, distilled from a policy that needs a whole chain.

FQL (arXiv 2502.02538, eq. 8): the student mu(s, z) answers each noise z as the chain does,

    L(s) = E_z mean_D ( mu(s, z) - decode(s, z) )^2,   z ~ N(0, 1),

so its actions are distributed like the chain's, modes and all, and it stays differentiable in one
pass. As a proposer for targets it replaces a chain of T steps.

Shape legend: B observations, n candidates, H action chunk, A action dimension, D = H * A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Generator, Tensor

from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy
from offline.draws import normal
from offline.spec import ActionSpec
from offline.types import Obs

LAYERS = 3  # of the trunk: at 2 the distance to a flow of two modes is twice as large


class Student(ChunkPolicy):
    """A `ChunkPolicy` of kind "student": sampled, saved and loaded like any other.

    Args:
        spec: of the actions, with `spec.chunk` = H.
        obs_shapes: of each observation key needed.
        env: the environment trained for.
        meta: whatever else should be saved, as JSON.
        architecture: sizes; chain and sampler are not used.
    """

    def __init__(
        self,
        spec: ActionSpec,
        obs_shapes: Mapping[str, tuple[int, ...]],
        *,
        env: str | None = None,
        meta: Mapping[str, Any] | None = None,
        architecture: Architecture | None = None,
    ) -> None:
        super().__init__("student", spec, obs_shapes, env=env, meta=meta, architecture=architecture)

    @classmethod
    def of(cls, teacher: ChunkPolicy) -> Student:
        """A student for `teacher`, on its device: same sizes, and its encoder to start from."""
        sizes = replace(teacher.architecture, network="factored", layers=LAYERS)
        student = cls(teacher.spec, teacher.obs_shapes, env=teacher.env, architecture=sizes)
        student.encoder.load_state_dict(teacher.encoder.state_dict())
        if len(teacher.body):  # a residual network has none
            student.body.load_state_dict(teacher.body.state_dict())
        return student.to(next(teacher.parameters()).device)

    def forward(self, obs: Obs, noise: Tensor) -> Tensor:
        """Chunks (B, n, H, A) of standard normal noise (B, n, D); not clipped, with gradients."""
        x = self.head(self.encode(obs), noise)
        return x.unflatten(-1, (self.spec.chunk, self.spec.dim))

    def draw_noise(self, count: int, generator: Generator | None) -> Tensor:
        """One standard normal (count, 1, D) for each row."""
        shape = (count, 1, self.spec.chunk * self.spec.dim)
        return normal(shape, generator, next(self.parameters()))

    def distill_loss(
        self, obs: Obs, base_policy: ChunkPolicy, generator: Generator | None
    ) -> Tensor:
        """(B,) mean over D of (mu(s, z) - decode(s, z))^2, at one random z for each row."""
        noise = self.draw_noise(len(next(iter(obs.values()))), generator)
        return distance(self(obs, noise), base_policy.decode(obs, noise))


def distance(act: Tensor, target: Tensor) -> Tensor:
    """(B, n, H, A) each -> (B,): mean squared difference."""
    return (act - target).square().mean((1, 2, 3))
