"""A scheduler whose steps have densities, in place of one whose steps have none.

Two kinds can be trained on: DDIM and DDPM for models of a table of betas, and the Euler scheduler
of flow matching. Most pipelines ship another (PNDM, DPM-Solver, Euler): another way to *sample* the
same noise schedule. It is replaced where the noise schedule survives, which is checked number by
number, and refused where it does not (EDM, a flow under a UNet, unknown betas). Every replacement
is told.

Zero terminal SNR: arXiv 2305.08891. Flow shift: arXiv 2403.03206, section 5.3.2.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from diffusion.checkpoints.index import SCHEDULER, Checkpoint
from diffusion.errors import InputError, shown

EULER = "FlowMatchEulerDiscreteScheduler"
GAUSSIAN = ("DDIMScheduler", "DDPMScheduler")
FEW_STEPS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")
# What makes the noise schedule and the network's output mean what they do; always carried over.
CARRIED = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "prediction_type", "rescale_betas_zero_snr",
)  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """A scheduler that can be trained on, and what it stands for.

    replaced: such as "PNDMScheduler -> DDIMScheduler"; None where it is the pipeline's own.
    note: why, for the user.
    """

    scheduler: Any
    replaced: str | None = None
    note: str = ""


def fitted(
    scheduler: Any, *, flow: bool, wanted: str = "keep", name: str = "the pipeline"
) -> Fitted:
    """The scheduler of a pipeline, or what can stand for it.

    Args:
        scheduler: the pipeline's own.
        flow: whether the pipeline's family predicts a velocity.
        wanted: keep, ddim or ddpm.
        name: what messages call the pipeline.

    Raises:
        InputError: the noise schedule is none that can be trained on.
    """
    return _of_flow(scheduler, wanted, name) if flow else _of_betas(scheduler, wanted, name)


def _of_betas(scheduler: Any, wanted: str, name: str) -> Fitted:
    import diffusers

    kind, config = type(scheduler).__name__, scheduler.config
    _require_betas(scheduler, name)
    target = f"{wanted.upper()}Scheduler" if wanted != "keep" else GAUSSIAN[0]
    if wanted == "keep" and kind in GAUSSIAN:
        target = kind
    if target == kind:
        _require_signal(scheduler, name)
        return Fitted(scheduler)
    known = inspect.signature(getattr(diffusers, target)).parameters
    kept = {key: config[key] for key in CARRIED if key in config and key in known}
    if wanted == "keep" or "clip_sample" not in config:
        kept["clip_sample"] = False  # the default of True would clip latents
    try:
        new = getattr(diffusers, target).from_config(config, **kept)
    except (NotImplementedError, ValueError, TypeError) as error:
        raise InputError(
            f'the scheduler of "{name}" is {kind}, whose noise schedule {target} does not have: '
            f"{shown(error, 120)}"
        ) from error
    before, after = scheduler.alphas_cumprod.double().cpu(), new.alphas_cumprod.double()
    if before.shape != after.shape or not torch.allclose(before, after, atol=1e-6):
        raise InputError(
            f'the scheduler of "{name}" is {kind}, whose noise schedule {target} does not have; '
            "training on another one would undo the model"
        )
    _require_signal(new, name)
    why = "as --scheduler says" if wanted != "keep" else "because its steps have no density"
    return Fitted(
        new,
        f"{kind} -> {target}",
        f"scheduler {kind} is replaced by {target} of the same noise schedule, {why}{_few(kind)}",
    )


def _require_betas(scheduler: Any, name: str) -> None:
    """Refuse schedulers of another noise schedule than a table of betas."""
    kind, get = type(scheduler).__name__, scheduler.config.get
    said = f'the scheduler of "{name}" is {kind}'
    if _is_flow(scheduler):
        raise InputError(
            f"{said} of a rectified flow, and its pipeline is of a family trained on betas: a "
            "flow under a UNet cannot be trained here. If the model is none, give its folder a "
            "scheduler of its betas, such as DDIMScheduler"
        )
    if get("sigma_data") is not None or kind.startswith("EDM"):
        raise InputError(
            f"{said}: the model is of EDM's noise levels, and not of a table of betas; training it "
            "as DDIM's would undo it"
        )
    if get("timestep_type") == "continuous":
        raise InputError(
            f'{said} with timestep_type "continuous": its network is told noise levels, and not '
            "the timesteps of DDIM"
        )
    given = get("trained_betas") is not None or get("beta_schedule") is not None
    if not given or not isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor):
        raise InputError(
            f"{said}, whose configuration has no betas: nothing says which noise schedule the "
            "model was trained on, and default ones would undo it"
        )


def _require_signal(scheduler: Any, name: str) -> None:
    config = scheduler.config
    zero = config.get("rescale_betas_zero_snr") or float(scheduler.alphas_cumprod[-1]) == 0
    if zero and config.prediction_type == "epsilon":
        raise InputError(
            f'the noise schedule of "{name}" ends in pure noise (zero SNR, '
            f"rescale_betas_zero_snr={bool(config.get('rescale_betas_zero_snr'))}) and its "
            "prediction_type is epsilon, which says nothing of the image there. If the model "
            'predicts v, set prediction_type to "v_prediction" in scheduler/scheduler_config.json; '
            "else set rescale_betas_zero_snr to false"
        )


def _of_flow(scheduler: Any, wanted: str, name: str) -> Fitted:
    from diffusers import FlowMatchEulerDiscreteScheduler

    kind, config = type(scheduler).__name__, scheduler.config
    if wanted != "keep":
        raise InputError(
            f'--scheduler {wanted} is for diffusion models, and "{name}" is a flow model: '
            "choose how it is sampled with --sampler"
        )
    if not _is_flow(scheduler):
        raise InputError(
            f'"{name}" is a flow model, and its scheduler is {kind}, which has no sigmas of a flow '
            f"(use_flow_sigmas is not set); step densities are known for {EULER}"
        )
    if config.get("invert_sigmas"):
        raise InputError(
            f'the scheduler of "{name}" runs from the image to the noise (invert_sigmas), which '
            "cannot be sampled here"
        )
    if kind == EULER:
        return Fitted(scheduler)
    shift = config.get("flow_shift", config.get("shift", 1.0))
    if not isinstance(shift, int | float):
        raise InputError(f'the scheduler of "{name}" is {kind} with the shift {shown(shift)}')
    known = inspect.signature(FlowMatchEulerDiscreteScheduler).parameters
    unset = config.get("_use_default_values", ())
    kept = {key: config[key] for key in known if key in config and key not in unset}
    new = FlowMatchEulerDiscreteScheduler(**kept | {"shift": float(shift)})
    return Fitted(
        new,
        f"{kind} -> {EULER}",
        f"scheduler {kind} is replaced by {EULER} of the same shift ({shift:g}), because its steps "
        f"have no density{_few(kind)}",
    )


def _is_flow(scheduler: Any) -> bool:
    get = scheduler.config.get
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or bool(get("use_flow_sigmas"))
        or get("prediction_type") == "flow_prediction"
    )


def _few(kind: str) -> str:
    if kind not in FEW_STEPS:
        return ""
    return (
        "; a model distilled for few steps wants few steps and its own guidance "
        "(--num-inference-steps, --guidance-scale)"
    )


def read_scheduler(found: Checkpoint, **changed: Any) -> Any:
    """A checkpoint's scheduler from its small files, with some settings changed; None where the
    pipeline names none.

    Raises:
        InputError: it has no configuration, or one that its class refuses.
    """
    kind: Any = found.component("scheduler") if "scheduler" in found.parts else None
    if kind is None:
        return None
    config = found.config("scheduler", SCHEDULER)
    if not config:
        raise InputError(
            f'cannot load pipeline "{found.name}": it has no scheduler/{SCHEDULER}; was it copied '
            "whole?"
        )
    try:
        return kind.from_config(config, **changed)
    except Exception as error:  # whatever a class makes of a foreign configuration
        raise InputError(
            f'cannot load pipeline "{found.name}": its scheduler {kind.__name__} refuses its '
            f"configuration: {shown(error, 160)}"
        ) from error


def mended(pipe: Any, before: dict[str, Any]) -> str:
    """What a pipeline's class itself has changed in its scheduler's settings since `before`, which
    is then recorded; empty where it is nothing."""
    now = pipe.scheduler.config
    other = [
        f"{key} {value} -> {now[key]}"
        for key, value in before.items()
        if not key.startswith("_") and key in now and now[key] != value
    ]
    if not other:
        return ""
    _record(pipe, f"{type(pipe.scheduler).__name__}: {', '.join(other)}")
    return f"{type(pipe).__name__} changes its scheduler's settings: {', '.join(other)}"


def replaced(pipe: Any) -> str | None:
    """What is not the pipeline's own in its scheduler, such as "PNDMScheduler -> DDIMScheduler";
    None where all is."""
    return "; ".join(getattr(pipe, "_scheduler_replaced", ())) or None


def _record(pipe: Any, what: str) -> None:
    pipe._scheduler_replaced = (*getattr(pipe, "_scheduler_replaced", ()), what)


def fit(pipe: Any, *, flow: bool, wanted: str, name: str) -> str:
    """Give a pipeline its fitted scheduler, in place; returns the note, which may be empty.

    Raises:
        InputError: as of `fitted`.
    """
    found = fitted(pipe.scheduler, flow=flow, wanted=wanted, name=name)
    if found.replaced:
        pipe.scheduler = found.scheduler
        _record(pipe, found.replaced)
    return found.note
