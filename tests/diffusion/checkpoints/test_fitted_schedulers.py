"""A scheduler is replaced where its noise schedule survives, else refused, never in silence."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from tiny_families import tiny
from tiny_models import SCHEDULE, tiny_sd

from diffusion.chain import sample_chain
from diffusion.checkpoints.schedulers import fitted, replaced
from diffusion.errors import InputError
from diffusion.flow import flow_process
from diffusion.forward import forward_process
from diffusion.loading import prepare_pipeline
from diffusion.pipelines import ImagePolicy

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def made(kind: str, **options):
    return getattr(diffusers, kind)(**options)


@pytest.mark.parametrize(
    "kind",
    [
        "PNDMScheduler",
        "LMSDiscreteScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "KDPM2DiscreteScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "LCMScheduler",
        "DDIMParallelScheduler",
    ],
)
@pytest.mark.parametrize("betas", [BETAS, {}], ids=["given", "the class's own"])
def test_the_noise_schedule_survives_the_swap(kind, betas):
    """With `{}` the betas are those of the class's own defaults, which are not all DDIM's."""
    before = made(kind, **betas)
    found = fitted(before, flow=False)
    assert type(found.scheduler) is DDIMScheduler and not found.scheduler.config.clip_sample
    assert found.replaced == f"{kind} -> DDIMScheduler" and kind in found.note
    torch.testing.assert_close(found.scheduler.alphas_cumprod, before.alphas_cumprod)


def test_the_defaults_of_a_class_are_not_lost():
    """LCM's own betas differ from DDIM's; `from_config` alone would fall back to the latter."""
    before = LCMScheduler()
    fallen = DDIMScheduler.from_config(before.config)
    assert not torch.allclose(fallen.alphas_cumprod, before.alphas_cumprod, atol=1e-3)
    found = fitted(before, flow=False)
    torch.testing.assert_close(found.scheduler.alphas_cumprod, before.alphas_cumprod)
    assert "few steps" in found.note


def test_what_was_asked_for_does_not_clip_latents():
    """A configuration without clip_sample says nothing of it; DDIM's default would clip."""
    for wanted in ("ddim", "ddpm"):
        found = fitted(EulerDiscreteScheduler(**BETAS), flow=False, wanted=wanted)
        assert not found.scheduler.config.clip_sample and "--scheduler" in found.note
    kept = fitted(DDIMScheduler(clip_sample=True), flow=False, wanted="ddpm")
    assert kept.scheduler.config.clip_sample  # the configuration does say


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("EDMEulerScheduler", {}, "EDM"),
        ("EDMDPMSolverMultistepScheduler", {}, "EDM"),
        ("FlowMatchEulerDiscreteScheduler", {}, "rectified flow"),
        ("FlowMatchHeunDiscreteScheduler", {}, "rectified flow"),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "rectified flow"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "rectified flow"),
        ("IPNDMScheduler", {}, "no betas"),
        ("CMStochasticIterativeScheduler", {}, "EDM"),
        ("ScoreSdeVeScheduler", {}, "no betas"),
        ("DDPMWuerstchenScheduler", {}, "no betas"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "noise levels"),
        ("HeunDiscreteScheduler", {"beta_schedule": "exp"}, "does not have"),
        ("CogVideoXDDIMScheduler", {}, "does not have"),
    ],
)
@pytest.mark.parametrize("wanted", ["keep", "ddim"])
def test_another_noise_schedule_is_refused(kind, options, said, wanted):
    with pytest.raises(InputError) as error:
        fitted(made(kind, **options), flow=False, wanted=wanted, name="x/y")
    assert said in str(error.value) and kind in str(error.value) and "x/y" in str(error.value)


def test_a_replacement_is_said_and_remembered():
    said = list[str]()
    pipe = tiny_sd()
    pipe.scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True)
    prepare_pipeline(pipe, say=said.append)
    assert replaced(pipe) == "PNDMScheduler -> DDIMScheduler"
    assert len(said) == 1 and "PNDMScheduler" in said[0] and "\n" not in said[0]
    prepare_pipeline(pipe, say=said.append)  # nothing is left to replace
    assert len(said) == 1
    assert replaced(prepare_pipeline(tiny_sd())) is None


# -- flow -----------------------------------------------------------------------------------------


def sana_with(scheduler, said):
    pipe = tiny("sana")
    pipe.scheduler = scheduler
    return prepare_pipeline(pipe, say=said.append)


def sanas_own(**options) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, **options
    )


def drawn(pipe, timesteps=None, **schedule) -> torch.Tensor:
    policy = ImagePolicy(
        pipe, guidance_scale=1.0, height=32, width=32, max_sequence_length=24, train="full"
    )
    process = flow_process(pipe.scheduler, 4, "ode", schedule=schedule)
    if timesteps is not None:
        process = replace(process, timesteps=timesteps.float())
    chain = sample_chain(
        policy.predict, process, policy.encode(["a"]), policy.latent_shape,
        [torch.Generator().manual_seed(5)],
    )  # fmt: skip
    return policy.decode(chain.sample)


def call(pipe) -> torch.Tensor:
    return pipe(
        prompt=["a"],
        num_inference_steps=4,
        guidance_scale=1.0,
        height=32,
        width=32,
        max_sequence_length=24,
        use_resolution_binning=False,
        generator=[torch.Generator().manual_seed(5)],
        output_type="pt",
    ).images


def test_sanas_dpm_solver_becomes_the_euler_scheduler_of_the_same_shift():
    said = list[str]()
    pipe = sana_with(sanas_own(), said)
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    assert pipe.scheduler.config.shift == 3.0
    assert replaced(pipe) == "DPMSolverMultistepScheduler -> FlowMatchEulerDiscreteScheduler"
    assert len(said) == 1 and "shift (3)" in said[0]
    plain = tiny("sana")
    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    torch.testing.assert_close(drawn(pipe), call(plain), atol=1e-5, rtol=0)


def test_at_dpm_solvers_own_sigmas_the_ode_is_its_first_order():
    """So the two schedulers differ in where they step, and in nothing else. DPM-Solver also rounds
    what it tells the network to whole timesteps."""
    plain = tiny("sana")
    plain.scheduler = sanas_own(solver_order=1)
    expected = call(plain)
    shifted = plain.scheduler.sigmas[:-1].double()
    unshifted = shifted / (3 - 2 * shifted)  # the Euler scheduler shifts what it is given
    pipe = sana_with(sanas_own(), [])
    images = drawn(pipe, plain.scheduler.timesteps, sigmas=unshifted.tolist())
    np.testing.assert_allclose(pipe.scheduler.sigmas[:-1], shifted, atol=1e-6)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"])
def test_other_flow_schedulers_keep_their_shift(kind):
    found = fitted(made(kind, shift=2.5), flow=True)
    assert type(found.scheduler) is FlowMatchEulerDiscreteScheduler
    assert found.scheduler.config.shift == 2.5 and found.replaced


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (DDIMScheduler(**SCHEDULE), "no sigmas of a flow"),
        (DPMSolverMultistepScheduler(), "no sigmas of a flow"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
    ],
)
def test_flow_models_refuse_what_has_no_flow(scheduler, said):
    with pytest.raises(InputError, match=said):
        fitted(scheduler, flow=True)


# -- zero terminal SNR ----------------------------------------------------------------------------

ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_epsilon_at_zero_snr_has_its_own_message(kind):
    scheduler = made(kind, **BETAS, **ZERO)
    with pytest.raises(InputError) as error:
        fitted(scheduler, flow=False, name="x")
    assert "zero SNR" in str(error.value) and "v_prediction" in str(error.value)


def test_a_cosine_schedule_is_not_one_of_zero_snr():
    """It ends at a signal of 2e-9, and epsilon models were trained on it."""
    scheduler = made("DDPMScheduler", beta_schedule="squaredcos_cap_v2")
    assert fitted(scheduler, flow=False).scheduler is scheduler


def test_v_prediction_at_zero_snr_starts_from_pure_noise_and_draws_the_pipelines_images():
    pipe = prepare_pipeline(tiny_sd(prediction_type="v_prediction", **ZERO))
    policy = ImagePolicy(pipe, guidance_scale=1.0, train="full")
    process = policy.process(5, eta=1.0)
    assert int(process.timesteps[0]) == 999 and float(process.sqrt_alpha[0]) == 0
    table = (process.c_x0, process.c_eps, process.c_xt, process.std, process.sensitivity)
    assert all(bool(torch.isfinite(column).all()) for column in table)
    chain = sample_chain(
        policy.predict, process, policy.encode(["a cat"]), policy.latent_shape,
        [torch.Generator().manual_seed(1)],
    )  # fmt: skip
    expected = pipe(
        ["a cat"], num_inference_steps=5, guidance_scale=1.0, eta=1.0, height=16, width=16,
        generator=[torch.Generator().manual_seed(1)], output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(policy.decode(chain.sample), expected, atol=1e-5, rtol=0)
    assert bool(torch.isfinite(chain.log_prob).all())


def test_trailing_spacing_survives_the_swap():
    euler = EulerDiscreteScheduler(**BETAS, **ZERO, prediction_type="v_prediction")
    scheduler = fitted(euler, flow=False).scheduler
    assert scheduler.config.timestep_spacing == "trailing"
    assert float(scheduler.alphas_cumprod[-1]) == 0
    scheduler.set_timesteps(5)
    assert int(scheduler.timesteps[0]) == 999


def test_the_forward_process_at_zero_snr_is_finite():
    scheduler = made("DDIMScheduler", **BETAS, **ZERO, prediction_type="v_prediction")
    process = forward_process(scheduler)
    at = torch.arange(len(process.a))
    for kind in ("simple", "elbo"):
        assert bool(torch.isfinite(process.half_weight(kind, at)).all())
