"""The KL on the forward process, against Gaussians whose KL is known."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffusion.forward import ForwardProcess, forward_process
from diffusion.guards.forward_kl import forward_kl, spread_times

SCHEDULERS = {
    "epsilon": DDIMScheduler(prediction_type="epsilon"),
    "v_prediction": DDIMScheduler(prediction_type="v_prediction"),
    "sample": DDIMScheduler(prediction_type="sample"),
    "zero_snr": DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}


def exact(process: ForwardProcess, mean: float, std: float):
    """The network of a Gaussian N(mean, std^2 I), which knows its posterior exactly."""
    time = {float(t): i for i, t in enumerate(process.timestep.tolist())}

    def predict(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        at = torch.tensor([time[float(v)] for v in t.tolist()])
        a, s = (v[at].double()[:, None] for v in (process.a, process.s))
        x = x_t.double()
        x0 = mean + a * std**2 / (a**2 * std**2 + s**2) * (x - a * mean)
        eps = s / (a**2 * std**2 + s**2) * (x - a * mean)
        return {
            "epsilon": eps,
            "v_prediction": a * eps - s * x0,
            "sample": x0,
            "flow": eps - x0,
        }[process.prediction_type].float()

    return predict


def estimate(process, one, other, samples: Tensor) -> Tensor:
    streams = [torch.Generator().manual_seed(i) for i in range(len(samples))]
    cond = {"row": torch.arange(len(samples))}
    return forward_kl(exact(process, *one), exact(process, *other), process, samples, cond, streams)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_is_the_kl_of_two_gaussians(name):
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s, in each of 20 dimensions."""
    process = forward_process(SCHEDULERS[name])
    mean, std = 0.4, 0.8
    random = torch.Generator().manual_seed(0)
    samples = mean + std * torch.randn(400, 20, generator=random)
    got = estimate(process, (mean, std), (0.0, 1.0), samples)
    known = 20 * ((mean**2 + std**2 - 1) / 2 - torch.tensor(std).log())
    assert float(got.mean()) == pytest.approx(float(known), rel=0.08)
    assert float(estimate(process, (mean, std), (mean, std), samples).abs().max()) == 0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_times_weigh_a_function_as_the_whole_schedule_does_and_do_not_go_with_rows(name):
    process = forward_process(SCHEDULERS[name])
    n = len(process.timestep)
    at, number = spread_times(process, 512)
    whole = torch.arange(1, n - 1)

    def error(i: Tensor) -> Tensor:
        """Of the network's output: about 1, but for x_0 as small as the noise is."""
        small = process.s[i].square() if process.prediction_type == "sample" else 1
        return (1 + i / n) * small

    plain = (process.half_weight("elbo", whole).double() * error(whole)).sum() / n
    assert float((number * error(at)).mean()) == pytest.approx(float(plain), rel=0.03)
    # Rows of one prompt in eight: their times are spread as all are.
    assert float((at[::8].double().mean() - at.double().mean()).abs()) < 0.06 * n


def test_batches_change_nothing_and_more_draws_only_sharpen():
    process = forward_process(SCHEDULERS["epsilon"])
    samples = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    cond = {"row": torch.arange(6)}

    def found(batch: int, draws: int) -> Tensor:
        streams = [torch.Generator().manual_seed(i) for i in range(6)]
        networks = exact(process, 0.2, 1.0), exact(process, 0.0, 1.0)
        return forward_kl(*networks, process, samples, cond, streams, draws=draws, batch=batch)

    torch.testing.assert_close(found(1, 3), found(64, 3), rtol=1e-5, atol=1e-8)
    assert float(found(64, 40).std()) < float(found(64, 1).std())
