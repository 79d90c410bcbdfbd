"""Settings of a critic that learns online, and of what bounds its values; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.option_check import require


@dataclass(frozen=True)
class CriticConfig:
    """Of the critic, its target and its penalties; see `offline.critics.td`."""

    value_ensemble: int = 10
    """Critic heads (E), at least 1."""
    subset: int = 2
    """Heads whose minimum is the target, drawn afresh for every update, 1 to --value-ensemble."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Units of each hidden layer of critic and actor, one number per layer."""
    lr: float = 3e-4
    """Learning rate of critic, actor and edit policy, above 0."""
    target_rate: float = 0.005
    """Step of the target critic towards the critic at each update, above 0 and at most 1."""
    critic_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the critic's hidden layers in training. Weights stay float32, and so do the
    scores that rank candidates."""
    layer_norm: bool = True
    """Normalise the critic's hidden layers (LayerNorm), which keeps values of unseen actions from
    growing. MBPO, VaGraM and RAVL are published without. --lipschitz spectral replaces it."""
    value_diversity: float = 0.0
    """Weight of the diversity of the heads' action gradients (EDAC, RAVL), at least 0. 0 turns it
    off."""
    lipschitz: Literal["none", "spectral", "adversarial"] = "none"
    """How the critic's Lipschitz constant is bounded: not at all, by normalised layers (spectral),
    or by a penalty on how much a small change of the state changes the value (adversarial)."""
    lipschitz_bound: float = 1.0
    """Largest singular value of each layer (c), above 0, with --lipschitz spectral."""
    lipschitz_weight: float = 0.1
    """Weight of the penalty (lambda), at least 0, with --lipschitz adversarial."""
    lipschitz_radius: float = 0.1
    """Largest change of each standardised state dimension (epsilon), above 0, with --lipschitz
    adversarial."""
    lipschitz_attack: Literal["fgsm", "pgd", "uniform"] = "fgsm"
    """How the change is found: one step along the gradient's sign (fgsm), several steps (pgd), or
    at random (uniform)."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        for name in ("value_ensemble", "subset"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("value_diversity", "lipschitz_weight"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("lr", "lipschitz_bound", "lipschitz_radius"):
            require(self, name, getattr(self, name) > 0, "above 0")
        require(self, "target_rate", 0 < self.target_rate <= 1, "above 0 and at most 1")
        require(self, "subset", self.subset <= self.value_ensemble, "at most --value-ensemble")
        require(
            self, "hidden", bool(self.hidden) and min(self.hidden) >= 1, "one or more sizes above 0"
        )
