"""Settings of a critic that learns online, and of what bounds its values; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.option_check import require


@dataclass(frozen=True)
class CriticConfig:
    """Of the critic, its target and its penalties; see `offline.critics.td`."""

    value_ensemble: int = 10
    """Critic heads (E)."""
    subset: int = 2
    """Heads whose minimum is the target, drawn afresh for every update."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Units of each hidden layer of critic and actor."""
    lr: float = 3e-4
    """Learning rate of critic, actor and edit policy."""
    target_rate: float = 0.005
    """Step of the target critic towards the critic."""
    critic_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the critic's hidden layers in training; weights stay float32, and so does
    every score that candidates are ranked by."""
    layer_norm: bool = True
    """LayerNorm in the critic's hidden layers, but for `lipschitz="spectral"`, which excludes it.
    It keeps values of unseen actions from growing; MBPO, VaGraM and RAVL are published without."""
    value_diversity: float = 0.0
    """Weight of the diversity of the heads' action gradients (EDAC, RAVL); 0 is off."""
    lipschitz: Literal["none", "spectral", "adversarial"] = "none"
    """Bound the critic's Lipschitz constant: "spectral" normalises its layers, "adversarial"
    penalises how much a small change of the state changes the value."""
    lipschitz_bound: float = 1.0
    """Largest singular value of each layer (c, spectral)."""
    lipschitz_weight: float = 0.1
    """Of the penalty (lambda, adversarial)."""
    lipschitz_radius: float = 0.1
    """Largest change of each standardised state dimension (epsilon, adversarial)."""
    lipschitz_attack: Literal["fgsm", "pgd", "uniform"] = "fgsm"
    """How the change is found: one step along the gradient's sign, several, or at random."""

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
