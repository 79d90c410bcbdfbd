"""Drawing and scoring queue work on a GPU and wait for it once, when a table is whole."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import GPU, FakeGpu, put
from family_images import SIZES, policy_of, streams
from tiny_models import tiny_sd

from diffusion.chain import sample_chain, sent
from diffusion.config import FinetuneConfig
from diffusion.fitting import Fitting
from diffusion.forward import draw_times, forward_process
from diffusion.guards.forward_kl import forward_kl
from diffusion.objective import Rollouts
from diffusion.objectives.make import make_objective
from diffusion.scores import ChainScores, ForwardScores
from diffusion.two_pass import log_probs, two_pass_backward

READ = ("qwen_image", "z_image")  # families whose masks are on the CPU, which reads them
FAST = ("sd", "sd3", "flux", "pixart")
NAMES = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SIZES]
PAIRS = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
GROUP = torch.tensor([0, 1])


def on_gpu(name: str, scale: float = 3.0):
    """A policy of the family with its denoiser on the GPU, and conditioning there."""
    policy = policy_of(name, scale, lora_rank=2)
    cond = policy.encode(["a cat", "a dog!"])
    policy.denoiser.to(GPU)
    policy.device = GPU
    kept = {k: name in READ and k.startswith("mask") for k in cond}
    return policy, {k: v if kept[k] else put(v) for k, v in cond.items()}


@pytest.mark.parametrize("name", NAMES)
def test_no_family_waits_in_drawing_or_scoring(name):
    policy, cond = on_gpu(name)
    process = policy.process(2)

    def draw():
        return sample_chain(
            policy.predict,
            process,
            cond,
            policy.latent_shape,
            streams(),
            reference=policy.predict_reference,
            reference_weights=policy.as_reference(),
            device=GPU,
        )

    x = torch.empty(2, *policy.latent_shape, device=GPU)
    policy.predict(x, process.timesteps_at(GROUP).to(GPU), cond)  # some copy tables at first
    with FakeGpu() as gpu:
        chain = draw()
        scores = ChainScores(
            policy.predict,
            policy.predict_reference,
            process,
            chain,
            cond,
            GROUP,
            ("log_prob", "kl"),
        )
        with scores.ahead(*PAIRS, Fitting(3)):
            values = scores.score(*PAIRS)
    assert chain.x.device == values.device == GPU and values.requires_grad
    assert gpu.waits == []


@pytest.mark.parametrize("algorithm", ["prdp-forward", "nft", "awm", "dpo"])
@pytest.mark.parametrize("weight", ["simple", "elbo"])
def test_no_objective_on_finished_images_waits(algorithm, weight):
    policy, cond = on_gpu("sd3", 1.0)
    config = FinetuneConfig(algorithm=algorithm, beta=1.0, clip=1e-2, loss_weight=weight, draws=2)
    objective = make_objective(replace(config, kl_weight=0.5))
    process = forward_process(policy.pipe.scheduler)
    noise = [streams()[: objective.draws] for _ in range(2)]
    draws = draw_times(process, policy.latent_shape, noise, GPU)
    sample = torch.empty(2, *policy.latent_shape, device=GPU)
    scores = ForwardScores(
        objective, process, policy.predict, sample, draws, cond, GROUP, policy.predict_reference,
        policy.predict_reference if getattr(objective, "needs_reference", False) else None,
    )  # fmt: skip
    pairs = PAIRS[0], PAIRS[1] % objective.draws
    with FakeGpu() as gpu, scores.ahead(*pairs, Fitting(3)):
        assert scores.score(*pairs).device == GPU
    assert gpu.waits == []


def test_the_distance_from_the_reference_is_brought_back_once():
    policy, cond = on_gpu("sd")
    process = forward_process(policy.pipe.scheduler)
    sample = torch.empty(2, *policy.latent_shape, device=GPU)
    predict, reference = policy.predict, policy.predict_reference
    with FakeGpu() as gpu, pytest.raises(NotImplementedError):  # there are no numbers to bring
        forward_kl(predict, reference, process, sample, cond, streams(), batch=1)
    assert len(gpu.waits) == 1 and "forward_kl.py" in gpu.waits[0]


def test_what_waits_is_seen():
    x = torch.empty(4, device=GPU)
    waiting = [
        lambda: x.cpu(),
        lambda: torch.ones(4).to(GPU),
        lambda: x.copy_(torch.ones(4)),
        lambda: x[torch.tensor([0, 1])],
        lambda: x[x > 0],
        lambda: bool((x > 0).any()),
        lambda: float(x.sum()),
    ]
    for number, wait in enumerate(waiting):
        with FakeGpu() as gpu:
            try:
                wait()
            except (NotImplementedError, RuntimeError):
                pass  # the meta device has no numbers
        assert gpu.waits, number
    with FakeGpu() as gpu:
        x.copy_(torch.ones(4), non_blocking=True)
        sent(torch.ones(4), GPU) + x
        torch.full((4,), 2, device=GPU)
    assert gpu.waits == []


class Counted(torch.Tensor):
    """A tensor that counts how often its numbers are moved or read."""

    moved = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs)
        if func not in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.item):
            return found
        Counted.moved += 1
        return found.as_subclass(torch.Tensor) if isinstance(found, torch.Tensor) else found


@pytest.mark.parametrize("linear", [False, True])
def test_each_pass_brings_its_table_back_once(linear):
    images, steps = 4, 5
    rollouts = Rollouts(
        log_prob_old=torch.zeros(images, steps),
        log_prob_ref=torch.zeros(images, steps),
        reward=torch.arange(4.0),
        group=torch.zeros(images, dtype=torch.long),
        step_weight=torch.full((steps,), 1 / steps, dtype=torch.float64),
        dimensions=3,
    )
    table = torch.arange(20.0).reshape(images, steps)
    cotangents = torch.zeros(images, steps)
    calls = []

    def score(rows, columns):
        calls.append((rows, columns))
        return table[rows, columns].as_subclass(Counted)

    def backward(values, cotangent):
        cotangents[calls[-1]] += cotangent.as_subclass(torch.Tensor)

    class Quadratic:
        terms_per_draw = 1

        def __init__(self) -> None:
            self.linear = linear

        def __call__(self, numbers, rollouts):
            loss = numbers.sum() if linear else numbers.square().sum() / 2
            return loss, {"loss": float(loss)}

    Counted.moved = 0
    assert torch.equal(log_probs(score, rollouts, 3), table)
    assert Counted.moved == 1 and len(calls) == 7
    Counted.moved = 0
    calls.clear()
    metrics = two_pass_backward(score, Quadratic(), rollouts, 3, backward=backward)
    assert Counted.moved == 1 and len(calls) == (7 if linear else 14)
    assert metrics["loss"] == float(table.sum() if linear else table.square().sum() / 2)
    expected = torch.ones_like(table) if linear else table
    assert torch.equal(cotangents, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for():
    from diffusion.loading import prepare_pipeline
    from diffusion.pipelines import ImagePolicy

    policy = ImagePolicy(
        prepare_pipeline(tiny_sd()), guidance_scale=3.0, lora_rank=2, device="cuda", height=16,
        width=16,
    )  # fmt: skip
    cond, process = policy.encode(["a cat", "a dog!"]), policy.process(2)
    where = SimpleNamespace(predict=policy.predict, reference=policy.predict_reference)

    def once():
        chain = sample_chain(
            where.predict,
            process,
            cond,
            policy.latent_shape,
            streams(),
            reference=where.reference,
            device="cuda",
        )
        scores = ChainScores(where.predict, where.reference, process, chain, cond, GROUP)
        scores.score(*PAIRS).sum().backward()

    once()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        once()
    finally:
        torch.cuda.set_sync_debug_mode("default")
