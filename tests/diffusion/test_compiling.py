"""A network compiled in place computes the same, keeps its names, and falls back to itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from family_images import policy_of

from diffusion.chain import sample_chain, score_steps
from diffusion.compiling import Compiled
from diffusion.config import FinetuneConfig, check
from diffusion.errors import InputError
from diffusion.lora.adapters import TRAINED, add_adapter, computing_with, wrapped_layers
from diffusion.scores import take
from diffusion.speed import Speed
from diffusion.streams import generators


class SmallUNet(torch.nn.Module):
    """Compiled whole, as its name says."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(6, 8)
        self.outer = torch.nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(x)))


def small() -> SmallUNet:
    torch.manual_seed(0)
    network = SmallUNet().requires_grad_(False)
    add_adapter(network, ["inner"], rank=2)
    torch.nn.init.ones_(network.inner.lora_B[TRAINED].weight)
    return network


def passes(network: SmallUNet, compiled: Compiled | None) -> list[torch.Tensor]:
    """Drawing, the reference and training, in batches of several sizes."""
    found = []

    def run(x: torch.Tensor) -> torch.Tensor:
        return network(x) if compiled is None else compiled.run(lambda: network(x), (x,))

    for rows in (4, 3, 5, 2):
        x = torch.arange(6.0 * rows).reshape(rows, 6) / 30
        with torch.no_grad():
            found.append(run(x))
            with computing_with(wrapped_layers(network), None):
                found.append(run(x))
        out = run(x)
        out.square().sum().backward()
        found += [out.detach(), network.inner.lora_A[TRAINED].weight.grad.clone()]
        network.zero_grad()
    return found


def test_three_graphs_serve_every_batch_and_adapters_switch():
    counted = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        counted.append(graph)
        return graph.forward

    torch._dynamo.reset()
    network, lines = small(), []
    names, expected = list(network.state_dict()), passes(network, None)
    compiled = Compiled(network, backend=backend, say=lines.append)
    for ours, theirs in zip(passes(network, compiled), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert len(counted) == 3 and not lines
    with torch.no_grad():
        for _ in range(2):
            compiled.run(lambda: network(torch.ones(1, 6)), (torch.ones(1, 6),))
    assert len(counted) <= 4  # a batch of one is its own
    assert list(network.state_dict()) == names
    assert [n for n, _ in network.named_parameters()] == [n for n, _ in small().named_parameters()]


def test_what_cannot_be_compiled_is_one_warning_and_runs_on():
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        raise RuntimeError("no C++ compiler\nwas found")

    torch._dynamo.reset()
    network, lines = small(), []
    compiled = Compiled(network, backend=broken, say=lines.append)
    for ours, theirs in zip(passes(network, compiled), passes(small(), None), strict=True):
        assert torch.equal(ours, theirs)
    assert len(lines) == 1 and "\n" not in lines[0]
    assert lines[0].startswith("warning: --compile: the SmallUNet cannot be compiled here (")
    assert "no C++ compiler" in lines[0]


def test_an_error_of_the_network_itself_is_its_own():
    torch._dynamo.reset()
    network, lines = small(), []
    compiled = Compiled(network, backend="eager", say=lines.append)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compiled.run(lambda: network(torch.ones(2, 5)), ())


@pytest.mark.parametrize(("name", "parts"), [("sd", 1), ("sd3", 2), ("flux", 2)])
def test_transformers_are_compiled_block_by_block(name, parts):
    compiled = Compiled(policy_of(name).denoiser, backend="eager")
    assert len(compiled.parts) == parts
    compiled.undo()
    assert all(m._compiled_call_impl is None for m in policy_of(name).denoiser.modules())


def test_dropout_of_a_lora_is_refused():
    with pytest.raises(InputError, match="a compiled network does not see"):
        check(FinetuneConfig(compile=True, lora_dropout=0.1))


@pytest.mark.slow
@pytest.mark.parametrize(("autocast", "checkpointing"), [(None, True), ("bf16", False)])
def test_drawing_and_scoring_agree_when_compiled(autocast, checkpointing):
    """By the real compiler: ratios are exact, and numbers are those of the network itself."""
    torch._dynamo.reset()
    found = []
    for compile in (False, True):
        policy = policy_of(
            "sd3",
            3.0,
            lora_rank=4,
            gradient_checkpointing=checkpointing,
            autocast=autocast,
            speed=Speed(compile=compile),
        )
        for name, weight in policy.trainable().items():
            if "lora_B" in name:
                torch.manual_seed(0)
                torch.nn.init.normal_(weight, std=0.2)
        cond, process = policy.encode(["a", "b", "c"]), policy.process(3)
        noise = generators(0, 1, 0, range(3))
        reference = policy.predict_reference
        chain = sample_chain(
            policy.predict, process, cond, policy.latent_shape, noise, reference=reference
        )
        worst = 0.0
        for rows, steps in (([0, 1, 2, 0], [0, 1, 0, 1]), ([0, 2], [1, 0])):
            at = torch.tensor(rows), torch.tensor(steps)
            again = score_steps(policy.predict, process, chain, take(cond, at[0]), *at)
            worst = max(worst, float((again - chain.log_prob[at]).detach().abs().max()))
            again.sum().backward()
        grads = torch.cat([p.grad.flatten() for p in policy.trainable().values()])
        found.append(SimpleNamespace(chain=chain, grads=grads, worst=worst))
    plain, compiled = found
    assert compiled.worst <= 1e-6
    tolerance = 1e-5 if autocast is None else 3e-2
    for name in ("log_prob", "log_prob_ref"):
        ours, theirs = getattr(compiled.chain, name), getattr(plain.chain, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    apart = (compiled.grads - plain.grads).norm() / plain.grads.norm()
    assert float(apart) <= 10 * tolerance
