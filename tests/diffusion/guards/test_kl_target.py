"""The controller of a KL target, by hand, on every objective that has a constant for it."""

from __future__ import annotations

import pytest

from diffusion.config import FinetuneConfig
from diffusion.errors import InputError
from diffusion.guards.kl_target import KLTarget, kl_target, weight_of
from diffusion.objectives.awm import AWM
from diffusion.objectives.ddpo import DDPO
from diffusion.objectives.dpo import DPO
from diffusion.objectives.grpo import GRPO
from diffusion.objectives.nft import NFT
from diffusion.objectives.prdp_forward import PRDPForward
from diffusion.objectives.rtb import RTB
from diffusion.prdp import PRDP

CONFIG = FinetuneConfig(kl_target=2.0, kl_gain=0.5)


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (PRDP(beta=0.1, clip=None, unit="nats"), "beta"),
        (RTB(beta=0.1), "beta"),
        (PRDPForward(beta=0.1, draws=3), "beta"),
        (GRPO(kl=0.1, normalise_ratio=True), "kl"),
        (AWM(kl=0.1), "kl"),
        (NFT(kl=0.1, mix=0.3), "kl"),
    ],
)
def test_it_multiplies_the_constant_and_leaves_the_rest(objective, name):
    control = kl_target(CONFIG, objective)
    assert control == KLTarget(2.0, 0.5, 0.1)
    for kl, factor in ((2.0, 1.0), (2.1, 1.025), (1.9, 0.975), (50.0, 1.1), (0.0, 0.9)):
        new = control.adapted(objective, kl)
        assert weight_of(new) == getattr(new, name) == pytest.approx(0.1 * factor)
        others = {k: v for k, v in vars(new).items() if k != name}
        assert type(new) is type(objective)
        assert others == {k: v for k, v in vars(objective).items() if k != name}


def test_it_stays_within_a_factor_of_a_thousand_of_the_start():
    objective, control = PRDP(beta=1.0), KLTarget(1.0, 1.0, 1.0)
    for kl, end in ((0.0, 1e-3), (9.0, 1e3)):
        for _ in range(100):
            objective = control.adapted(objective, kl)
        assert objective.beta == pytest.approx(end)


@pytest.mark.parametrize("objective", [DDPO(), DPO(), GRPO(), NFT(), lambda table, rollouts: None])
def test_objectives_without_such_a_constant_or_with_none_of_it_are_refused(objective):
    with pytest.raises(InputError, match="--kl-target"):
        kl_target(CONFIG, objective)
    assert kl_target(FinetuneConfig(), objective) is None
