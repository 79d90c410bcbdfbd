"""Samplers of flow-matching models: the ODE, and stochastic ones with about the same marginals.

x_t = (1 - t) x_0 + t eps, the network says v = eps - x_0, t runs from 1 to 0. One step goes from
t to s < t, with dt = s - t. Written in x_0 and eps as the network sees them (x_0 = x_t - t v,
eps = x_t + (1 - t) v), all samplers are

    x_s ~ N((1 - s) x_0 + c_eps eps, std^2)

    sampler     c_eps                          std
    ode         s                              0
    flow-sde    s + sigma^2 dt / (2 t)         sigma sqrt(-dt)    sigma = eta sqrt(t / (1 - t))
    dance-sde   s + sigma^2 dt / (2 t)         sigma sqrt(-dt)    sigma = eta
    cps         s cos(eta pi / 2)              s sin(eta pi / 2)

and each is the Euler ODE at eta = 0. flow-sde is singular at t = 1: there the next step's t stands
for it, as in the published code. The SDEs have the ODE's marginals in the limit of many steps. cps
keeps the noise level of the schedule, so its images stay clean; its marginals are the ODE's where
the network knows x_0, and only roughly else. Its last step (s = 0) has no density.

A window is where noise is drawn: the steps outside are the ODE's, and have no density.

Sources: Flow-GRPO (arXiv 2505.05470) eq. 9; DanceGRPO (arXiv 2505.07818); coefficient-preserving
sampling (arXiv 2509.05952); windows: Flow-GRPO-Fast, MixGRPO (arXiv 2507.21802).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion.errors import InputError, did_you_mean
from diffusion.process import ReverseProcess

SAMPLERS = ("ode", "flow-sde", "dance-sde", "cps")


def flow_process(
    scheduler: Any,
    num_inference_steps: int,
    sampler: str = "flow-sde",
    noise_level: float = 0.7,
    *,
    window: tuple[int, int] | None = None,
    schedule: Mapping[str, Any] | None = None,
) -> ReverseProcess:
    """Read a `FlowMatchEulerDiscreteScheduler`; calls its `set_timesteps`.

    Args:
        scheduler: its own shift, static or by the image's size, is kept.
        num_inference_steps: T.
        sampler: one of SAMPLERS.
        noise_level: eta, at least 0; at most 1 for cps.
        window: steps [first, after last) that draw noise; None for all.
        schedule: what a pipeline passes to `set_timesteps` beside T, such as `mu` or `sigmas`.

    Raises:
        InputError: another scheduler, an unknown sampler, or a noise level out of range.
    """
    if type(scheduler).__name__ != "FlowMatchEulerDiscreteScheduler":
        raise InputError(
            f"scheduler is {type(scheduler).__name__}; flow models are sampled by "
            "FlowMatchEulerDiscreteScheduler"
        )
    arguments = dict(schedule or {})
    if "sigmas" in arguments:
        scheduler.set_timesteps(**arguments)
    else:
        scheduler.set_timesteps(num_inference_steps, **arguments)
    sigmas, timesteps = scheduler.sigmas.double().cpu(), scheduler.timesteps.float().cpu()
    return flow_table(sigmas, timesteps, sampler, noise_level, window=window)


def flow_table(
    sigmas: Tensor,
    timesteps: Tensor,
    sampler: str,
    noise_level: float,
    *,
    window: tuple[int, int] | None = None,
) -> ReverseProcess:
    """The table of a schedule that is known by its numbers.

    Args:
        sigmas: (T+1,) float64 on the CPU: t before the first step, and after each of the T.
        timesteps: (T,) what the network is given at each.
        sampler, noise_level, window: as of `flow_process`.

    Raises:
        InputError: an unknown sampler, or a noise level out of range.
    """
    if sampler not in SAMPLERS:
        raise InputError(f'unknown sampler "{sampler}".{did_you_mean(sampler, SAMPLERS)}')
    most = 1.0 if sampler == "cps" else math.inf
    if not 0 <= noise_level <= most or not math.isfinite(noise_level):
        bound = " and at most 1 for cps" if sampler == "cps" else ""
        raise InputError(f"--noise-level must be at least 0{bound}, received {noise_level}")
    t, s = sigmas[:-1], sigmas[1:]
    c_eps, std = _noise(sampler, noise_level, t, s)
    if window is not None:
        inside = torch.zeros(len(t), dtype=torch.bool)
        inside[window[0] : window[1]] = True
        c_eps, std = torch.where(inside, c_eps, s), torch.where(inside, std, torch.zeros_like(std))
    return ReverseProcess(
        timesteps=timesteps,
        sqrt_alpha=1 - t,
        sqrt_noise=t,
        c_x0=1 - s,
        c_eps=c_eps,
        c_xt=torch.zeros_like(t),
        std=std,
        prediction_type="flow",
        clip_range=None,
    )


def _noise(sampler: str, eta: float, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(c_eps, std), each (T,)."""
    if sampler == "ode":
        return s, torch.zeros_like(s)
    if sampler == "cps":
        return s * math.cos(eta * math.pi / 2), s * math.sin(eta * math.pi / 2)
    if sampler == "flow-sde":
        finite = torch.where(t < 1, t, t[min(1, len(t) - 1)])
        if bool((finite >= 1).any()):
            raise InputError("flow-sde needs at least two steps: it is singular at t = 1")
        sigma = eta * (finite / (1 - finite)).sqrt()
    else:
        sigma = torch.full_like(t, eta)
    step = s - t
    return s + sigma**2 * step / (2 * t), sigma * (-step).sqrt()
