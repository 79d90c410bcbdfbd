"""`--compile`: what an agent computes again and again as fused kernels, by `torch.compile`.

Compiled are whole denoising chains, trunks (for their losses), one-step students and stacked heads:
functions of tensors that draw nothing at random. What surrounds them (random streams, choices,
optimisers) stays as it is, and so do weights, checkpoints and files. Fused kernels round otherwise,
so numbers agree with those of a run without `--compile` but for the last bits.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from genpol.policies.diffusion import DiffusionHead
from genpol.policies.flow import FlowHead
from genpol.policies.one_step import StudentHead
from genpol.policies.residual import ResidualTrunk
from genpol.policies.trunk import Trunk
from offline.errors import InputError, shown
from offline.networks.ensemble import StackedHeads

COMPILED = (DiffusionHead, FlowHead, StudentHead, Trunk, ResidualTrunk, StackedHeads)
BACKEND = "inductor"
VARIANTS = 64  # of one function: networks, with and without gradients, one or many rows


def compile_networks(networks: Iterable[nn.Module], device: str = "cpu") -> int:
    """Have networks compile at their next calls, each variant once; copies of them do not.

    Args:
        networks: looked through for parts that gain by it.
        device: where they compute.

    Returns:
        How many parts are compiled.

    Raises:
        InputError: this machine has no compiler for the device.
    """
    require_compiler(device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    found = {id(part): part for network in networks for part in network.modules()}
    parts = [part for part in found.values() if isinstance(part, COMPILED)]
    for part in parts:
        part.compile(backend=BACKEND)
    return len(parts)


def require_compiler(device: str) -> None:
    """Check that there is what `torch.compile` makes kernels with.

    Raises:
        InputError: there is none.
    """
    if BACKEND != "inductor":
        return
    if torch.device(device).type != "cpu":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise InputError(
                f"--compile on {device} needs Triton, which is not installed or does not know this "
                "device: pip install triton, or leave --compile out"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # a RuntimeError of its own
        raise InputError(
            f"--compile on the CPU needs a C++ compiler ({shown(error)}): install g++, or leave "
            "--compile out"
        ) from error
