"""Chains in memory that is taken once: the same bits as joined ones; the reference asked last."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import SCHEDULE

import diffusion.chain
from diffusion.chain import DenoisingChain, draw, sample_chain, score_chain, score_steps
from diffusion.fitting import Fitting
from diffusion.process import reverse_process
from diffusion.rollout import draw_chains

SHAPE, COUNT, STEPS = (2, 3, 3), 7, 5
PROCESS = reverse_process(DDIMScheduler(**SCHEDULE), STEPS)
DETERMINISTIC_LAST = reverse_process(DDIMScheduler(), STEPS)
OWNER = torch.tensor([0, 0, 0, 1, 1, 2, 2])
COND = {"shift": torch.tensor([0.0, 1.5, -2.0])}


def network(seed: int):
    """Elementwise, so that a row is the same to the last bit in any batch."""
    weight, bias = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed))

    def predict(x_t, t, cond):
        shift = (t / 1000 + cond["shift"]).reshape(-1, 1, 1, 1)
        return torch.tanh(weight * x_t + bias * shift)

    return predict


POLICY, REFERENCE = network(0), network(1)


def streams(places: slice) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(COUNT)[places]]


def drawn(size: int, process=PROCESS, **more) -> DenoisingChain:
    return draw_chains(
        POLICY, process, COND, OWNER, SHAPE, streams, Fitting(size), reference=REFERENCE, **more
    )


def step_by_step(rows: slice, process, dtype) -> DenoisingChain:
    """The loop written plainly: policy and reference side by side, lists that are stacked."""
    cond, generators = {"shift": COND["shift"][OWNER[rows]]}, streams(rows)
    like = torch.empty(0)
    x = draw(SHAPE, generators, like).to(dtype)
    xs, columns = [x], []
    for i in range(STEPS):
        step = torch.full((len(generators),), i)
        t, x_t = process.timesteps[step], x.float()
        mean = process.mean(POLICY(x_t, t, cond), x_t, step)
        other = process.mean(REFERENCE(x_t, t, cond), x_t, step)
        std = process.std_at(step, mean)
        x = mean + std * draw(SHAPE, generators, like) if process.std[i] > 0 else mean
        x = x.to(dtype)
        kl = ((mean - other) / std.clamp_min(1e-12)).square().flatten(1).mean(1) / 2
        kl = kl if process.stochastic[i] else torch.zeros_like(kl)
        tables = process.log_prob(x, mean, step), process.log_prob(x, other, step), kl
        xs.append(x)
        columns.append(torch.stack(tables))
    old, ref, kl = torch.stack(columns, -1)
    return DenoisingChain(torch.stack(xs), old, ref, kl)


@pytest.mark.parametrize("process", [PROCESS, DETERMINISTIC_LAST], ids=["ddim", "last-at-zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_one_buffer_holds_the_bits_of_joined_chains(process, dtype, size):
    parts = [step_by_step(slice(i, i + 3), process, dtype) for i in range(0, COUNT, 3)]
    joined = DenoisingChain.concatenate(parts)
    chain = drawn(size, process, storage_dtype=dtype)
    for name in ("x", "log_prob", "log_prob_ref", "kl"):
        assert torch.equal(getattr(chain, name), getattr(joined, name)), name
    assert chain.x.is_contiguous() and chain.x.shape == (STEPS + 1, COUNT, *SHAPE)
    assert chain.kl[:, process.stochastic].min() > 0


def test_the_reference_is_asked_after_the_batch_and_within_one_switch():
    said: list[str] = []

    def policy(x_t, t, cond):
        said.append("policy")
        return POLICY(x_t, t, cond)

    def reference(x_t, t, cond):
        said.append("reference")
        return REFERENCE(x_t, t, cond)

    @contextmanager
    def weights():
        said.append("switch")
        yield
        said.append("back")

    draw_chains(
        policy,
        DETERMINISTIC_LAST,
        COND,
        OWNER,
        SHAPE,
        streams,
        Fitting(4),
        reference=reference,
        reference_weights=weights,
    )
    dense = int(DETERMINISTIC_LAST.stochastic.sum())
    assert dense == STEPS - 1  # a step without a density needs no reference
    once = ["policy"] * STEPS + ["switch"] + ["reference"] * dense + ["back"]
    assert said == once * 2


def test_the_sample_alone_takes_one_place():
    whole, last = drawn(3), drawn(3, path=False)
    assert last.x.shape == (1, COUNT, *SHAPE)
    assert torch.equal(last.sample, whole.sample) and last.dimensions == whole.dimensions
    assert torch.equal(last.log_prob, whole.log_prob) and torch.equal(last.kl, whole.kl)


def test_chains_that_wait_elsewhere_are_scored_as_those_that_do_not():
    """With a second device there would be a copy between them; the path is the same."""
    chain = drawn(3)
    apart = DenoisingChain(chain.x, chain.log_prob, device=torch.device("cpu"))
    rows, steps = torch.tensor([6, 0, 2, 2]), torch.tensor([4, 0, 3, 1])
    cond = {"shift": COND["shift"][OWNER[rows]]}
    one, other = (score_steps(POLICY, PROCESS, c, cond, rows, steps) for c in (chain, apart))
    assert torch.equal(one, other)
    torch.testing.assert_close(one, chain.log_prob[rows, steps], rtol=0, atol=1e-6)
    assert apart.rows(rows).device == apart.span(1, 3).device == torch.device("cpu")
    cond = {"shift": COND["shift"][OWNER]}
    assert torch.equal(
        score_chain(POLICY, PROCESS, apart, cond), score_chain(POLICY, PROCESS, chain, cond)
    )


def test_only_the_steps_that_are_scored_leave_the_machines_memory():
    chain = DenoisingChain.empty(COUNT, SHAPE, STEPS, device="meta", in_host=True)
    assert chain.x.device.type == "cpu" and chain.log_prob.device.type == "meta"
    x_t, x_prev, steps = chain.step(torch.tensor([6, 0]), torch.tensor([4, 0]))
    assert {one.device.type for one in (x_t, x_prev, steps)} == {"meta"}
    assert x_t.shape == x_prev.shape == (2, *SHAPE) and x_t.dtype == torch.float32
    beside = DenoisingChain.empty(COUNT, SHAPE, STEPS, device="meta")
    assert beside.x.device.type == "meta" and beside.device is None


def test_memory_that_cannot_be_page_locked_is_plain_and_said(monkeypatch):
    plain = torch.empty

    def refused(*args, pin_memory=False, **kwargs):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ...")
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", refused)
    with pytest.warns(UserWarning, match="cannot be page-locked .CUDA error: out of memory"):
        room = diffusion.chain._in_host((6, 2, *SHAPE), torch.bfloat16, torch.device("cuda"))
    assert room.shape == (6, 2, *SHAPE) and room.dtype == torch.bfloat16


def test_a_span_is_a_window_into_the_whole():
    chain = DenoisingChain.empty(COUNT, SHAPE, STEPS, reference=True)
    part = chain.span(2, 4)
    for values in (part.x, part.log_prob, part.log_prob_ref, part.kl):
        values.fill_(7.0)
    for values in (chain.x.transpose(0, 1), chain.log_prob, chain.log_prob_ref, chain.kl):
        assert (values[2:4] == 7).all()
    assert not (chain.log_prob[[0, 1, 4, 5, 6]] == 7).any()
    some = chain.rows(torch.tensor([3, 0]))
    assert (some.log_prob[0] == 7).all() and not (some.log_prob[1] == 7).any()


def test_a_batch_that_does_not_fit_is_drawn_again_in_halves():
    """Memory runs out in the middle of a batch: nothing of it is left in the chains."""

    def policy(x_t, t, cond):
        if len(x_t) > 2 and t[0] < 500:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return POLICY(x_t, t, cond)

    batch = Fitting(5, auto=True)
    seen: list[int] = []
    chain = draw_chains(
        policy,
        PROCESS,
        COND,
        OWNER,
        SHAPE,
        streams,
        batch,
        reference=REFERENCE,
        after=lambda: seen.append(batch.size),
    )
    assert batch.size == 2 and seen == [2, 2, 2, 2]
    expected = drawn(COUNT)
    for name in ("x", "log_prob", "log_prob_ref", "kl"):
        assert torch.equal(getattr(chain, name), getattr(expected, name)), name


def test_tables_of_a_schedule_are_copied_once(monkeypatch):
    process = reverse_process(DDIMScheduler(**SCHEDULE), STEPS)
    copied: list[int] = []
    to = torch.Tensor.to

    def counted(self, *args, **kwargs):
        if self.dtype == torch.float64 and len(self) == STEPS:
            copied.append(1)
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    cond = {"shift": COND["shift"][OWNER]}
    for _ in range(2):
        sample_chain(POLICY, process, cond, SHAPE, streams(slice(None)))
    assert len(copied) == 6  # two tables of the schedule, three coefficients and std
