"""Settings of a critic that learns online, and of what bounds its values; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.option_check import check_numbers, require
from offline.ranges import NotNegative, Positive, Size, Sizes, Step


@dataclass(frozen=True)
class CriticConfig:
    """Of the critic, its target and its penalties; see `offline.critics.td`."""

    value_ensemble: Size = 10
    """Critic heads (E), at least 1."""
    subset: Size = 2
    """Heads whose minimum is the target, drawn afresh for every update, 1 to --value-ensemble."""
    hidden: Sizes = (256, 256, 256)
    """Units of each hidden layer of critic and actor, one number per layer."""
    lr: Positive = 3e-4
    """Learning rate of critic, actor and edit policy, above 0."""
    target_rate: Step = 0.005
    """Step of the target critic towards the critic at each update, above 0 and at most 1."""
    critic_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the critic's hidden layers in training. Weights stay float32, and so do the
    scores that rank candidates."""
    layer_norm: bool = True
    """Normalise the critic's hidden layers (LayerNorm), which keeps values of unseen actions from
    growing. MBPO, VaGraM and RAVL are published without. --lipschitz spectral replaces it.
    --actor-layer-norm and --edit-layer-norm say the same of the policies."""
    value_diversity: NotNegative = 0.0
    """Weight of the diversity of the heads' action gradients (EDAC, RAVL), at least 0. 0 turns it
    off."""
    lipschitz: Literal["none", "spectral", "adversarial"] = "none"
    """How the critic's Lipschitz constant is bounded: not at all, by normalised layers (spectral),
    or by a penalty on how much a small change of the state changes the value (adversarial)."""
    lipschitz_bound: Positive = 1.0
    """Largest singular value of each layer (c), above 0, with --lipschitz spectral."""
    lipschitz_weight: NotNegative = 0.1
    """Weight of the penalty (lambda), at least 0, with --lipschitz adversarial."""
    lipschitz_radius: Positive = 0.1
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
        check_numbers(self)
        require(self, "subset", self.subset <= self.value_ensemble, "at most --value-ensemble")
