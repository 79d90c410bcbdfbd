"""The two-pass gradient against autograd through the whole loss, and the memory of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from peft import LoraConfig
from tiny_models import LATENT, SCHEDULE, TEXT_WIDTH, TOKENS, guided_predictor, tiny_sd
from torch import Tensor

from diffusion.chain import sample_chain, score_chain, score_steps
from diffusion.objective import Rollouts, step_weights
from diffusion.prdp import PRDP
from diffusion.process import reverse_process
from diffusion.two_pass import log_probs, two_pass_backward

GUIDANCE = 3.0
PROMPTS, IMAGES = 2, 3
CHAINS = PROMPTS * IMAGES
OBJECTIVE = PRDP(beta=3.0, clip=5e-4)  # targets of the log-ratios' own size, so that both matter


class Problem:
    """Chains of a random tiny UNet with a LoRA, guidance on, and everything to score them."""

    def __init__(self, num_steps: int = 4, chains: int = CHAINS):
        self.unet = tiny_sd().unet
        torch.manual_seed(0)
        self.unet.requires_grad_(False)
        self.unet.add_adapter(
            LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), "lora"
        )
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        assert 0 < sum(p.numel() for p in self.parameters) < 20_000
        self.predict = guided_predictor(self.unet, GUIDANCE)
        random = torch.Generator().manual_seed(1)
        text, negative = torch.randn(2, chains, TOKENS, TEXT_WIDTH, generator=random)
        self.cond = {"text": text, "text_negative": negative}
        self.process = reverse_process(DDIMScheduler(**SCHEDULE), num_steps)
        self.perturb(0.1, seed=2)  # away from the reference, which has the LoRA at zero
        self.chain = sample_chain(
            self.predict,
            self.process,
            self.cond,
            LATENT,
            [torch.Generator().manual_seed(i) for i in range(chains)],
            reference=self.reference,
        )
        self.rollouts = Rollouts(
            log_prob_old=self.chain.log_prob,
            log_prob_ref=self.chain.log_prob_ref,
            reward=torch.rand(chains, generator=random),
            group=torch.arange(chains) // IMAGES,
            step_weight=step_weights(self.process, "skip_last"),
            dimensions=self.chain.dimensions,
        )

    def reference(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        self.unet.disable_adapters()
        output = self.predict(x, t, cond)
        self.unet.enable_adapters()
        return output

    def perturb(self, size: float, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters:
                p += size * torch.randn(p.shape, generator=random)

    def score(self, rows: Tensor, steps: Tensor) -> Tensor:
        cond = {name: value[rows] for name, value in self.cond.items()}
        return score_steps(self.predict, self.process, self.chain, cond, rows, steps)

    def one_graph(self, objective: PRDP = OBJECTIVE) -> dict[str, float]:
        loss, metrics = objective(
            score_chain(self.predict, self.process, self.chain, self.cond), self.rollouts
        )
        loss.backward()
        return metrics

    def take_gradient(self) -> Tensor:
        flat = torch.cat([p.grad.flatten() for p in self.parameters])
        for p in self.parameters:
            p.grad = None
        return flat

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters])


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


@pytest.fixture(scope="module")
def moved() -> Problem:
    """After an update that carries some ratios beyond the clip, and not others."""
    problem = Problem()
    problem.perturb(0.004, seed=3)
    return problem


@pytest.mark.parametrize("micro_batch", [1, 3, 1000])
def test_equals_autograd_before_an_update(problem, micro_batch):
    metrics = problem.one_graph()
    expected = problem.take_gradient()
    assert metrics["prdp/clip_fraction"] == 0 and metrics["prdp/pairs"] == 6
    for current in (None, problem.chain.log_prob):
        seen = two_pass_backward(
            problem.score, OBJECTIVE, problem.rollouts, micro_batch, current=current
        )
        assert difference(problem.take_gradient(), expected) < 1e-5
        assert seen["prdp/loss"] == pytest.approx(metrics["prdp/loss"], rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 3, 1000])
def test_equals_autograd_where_the_clip_acts(moved, micro_batch):
    metrics = moved.one_graph()
    expected = moved.take_gradient()
    assert 0.1 < metrics["prdp/clip_fraction"] < 0.9 and metrics["prdp/clipped_pairs"] > 0.1
    moved.one_graph(replace(OBJECTIVE, clip=None))
    assert difference(moved.take_gradient(), expected) > 0.01  # the clip does matter here
    seen = two_pass_backward(moved.score, OBJECTIVE, moved.rollouts, micro_batch)
    assert difference(moved.take_gradient(), expected) < 1e-5
    assert seen["prdp/clip_fraction"] == metrics["prdp/clip_fraction"]


@pytest.mark.parametrize(
    ("optimiser", "tolerance"),
    [
        (lambda p: torch.optim.SGD(p, lr=2.0, momentum=0.9), 1e-5),
        # Adam divides a gradient by its own size, and the rounding of tiny ones with it
        (lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-4), 1e-3),
    ],
)
def test_three_inner_steps_end_at_the_same_weights(optimiser, tolerance):
    moves, clipped = [], []
    for two_pass in (True, False):
        problem = Problem()
        start = problem.weights()
        stepper = optimiser(problem.parameters)
        for inner in range(3):
            if two_pass:
                current = problem.chain.log_prob if inner == 0 else None
                metrics = two_pass_backward(
                    problem.score, OBJECTIVE, problem.rollouts, 3, current=current
                )
            else:
                metrics = problem.one_graph()
            clipped.append(metrics["prdp/clip_fraction"])
            stepper.step()
            stepper.zero_grad()
        moves.append(problem.weights() - start)
    assert clipped[:3] == clipped[3:] and 0.1 < clipped[2] < 0.9
    assert difference(*moves) < tolerance


def test_steps_without_weight_are_never_scored(problem):
    seen = set()

    def score(rows, steps):
        seen.update(steps.tolist())
        return problem.score(rows, steps)

    two_pass_backward(score, OBJECTIVE, problem.rollouts, 3)
    problem.take_gradient()
    assert seen == set(problem.rollouts.step_weight.nonzero().flatten().tolist())
    assert len(seen) == problem.process.num_steps - 1
    table = log_probs(problem.score, problem.rollouts, 4)
    used = problem.rollouts.step_weight > 0
    torch.testing.assert_close(table[:, used], problem.chain.log_prob[:, used], rtol=0, atol=1e-5)
    assert not table.requires_grad and (table[:, ~used] == 0).all()


def test_all_tied_rewards_give_no_loss_and_no_gradient(moved):
    rollouts = replace(moved.rollouts, reward=torch.full((CHAINS,), 0.5))
    metrics = two_pass_backward(moved.score, OBJECTIVE, rollouts, 3)
    assert metrics["prdp/loss"] == 0 and metrics["prdp/pairs"] == 0
    assert metrics["prdp/tie_fraction"] == 1
    assert all(value == value for value in metrics.values())
    assert all(p.grad is None or not p.grad.any() for p in moved.parameters)
    leaf = moved.chain.log_prob.clone().requires_grad_()
    loss, _ = OBJECTIVE(leaf, rollouts)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss == 0 and gradient.shape == leaf.shape and not gradient.any()


class SavedBytes:
    """Peak bytes that autograd keeps for backward, counted as tensors are saved and released."""

    def __init__(self):
        self.live = self.peak = 0

    def __enter__(self):
        meter = self

        class Saved:
            def __init__(self, tensor: Tensor):
                self.tensor = tensor.detach()  # an output that held its own node would never die
                self.size = tensor.numel() * tensor.element_size()
                meter.live += self.size
                meter.peak = max(meter.peak, meter.live)

            def __del__(self):
                meter.live -= self.size

        self.hooks = torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


def test_peak_memory_does_not_grow_with_the_number_of_steps():
    two_pass, one_graph = {}, {}
    for num_steps in (5, 50):
        problem = Problem(num_steps, chains=2)
        stored = sum(
            v.numel() * v.element_size()
            for v in (problem.chain.x, problem.chain.log_prob, problem.chain.log_prob_ref)
        )
        with SavedBytes() as meter:
            two_pass_backward(problem.score, OBJECTIVE, problem.rollouts, 2)
        assert meter.live == 0  # released, so the peak is a peak and not a sum
        two_pass[num_steps] = meter.peak + stored
        with SavedBytes() as meter:  # the forward alone reaches the peak
            score_chain(problem.predict, problem.process, problem.chain, problem.cond)
        assert meter.live == 0
        one_graph[num_steps] = meter.peak + stored
    assert two_pass[5] > 1e6  # no empty backward
    assert two_pass[50] < 1.1 * two_pass[5]
    assert 9 < one_graph[50] / one_graph[5] < 10.5
