"""Sizes that are found: halved where memory runs out, and nothing counted twice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_tuners import tiny_tuner

from diffusion.errors import InputError
from diffusion.fitting import LARGEST, Fitting, fitting, found, memory_said, ran_out
from diffusion.objective import Rollouts
from diffusion.ranks import Ranks
from diffusion.two_pass import log_probs, two_pass_backward


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Collecting garbage takes longer than all else here."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda **_: None)


MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


def walk(batch: Fitting, count: int, most: int, restart: bool = False) -> list[tuple[int, int]]:
    """The ranges that were done, where more than `most` do not fit."""
    done: list[tuple[int, int]] = []

    def part(first: int, last: int) -> None:
        if last - first > most:
            raise torch.OutOfMemoryError(MEMORY)
        done.append((first, last))

    batch.over(count, part, done.clear if restart else None)
    return done


def test_a_given_size_stays():
    assert walk(Fitting(3), 7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert walk(Fitting(100), 7, 100) == [(0, 7)]
    assert walk(Fitting(3), 0, 3) == []
    assert fitting(5).size == 5 and not fitting(5).auto
    batch = Fitting(5)
    assert fitting(batch) is batch


def test_a_size_is_halved_until_it_fits_and_is_kept():
    batch = Fitting(256, auto=True)
    assert walk(batch, 10, 3) == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]  # 10, 5, 2
    assert batch.size == 2 and batch.halvings == 2
    assert walk(batch, 3, 3) == [(0, 2), (2, 3)]


def test_a_size_that_fits_at_first_may_fail_later():
    batch, most, done = Fitting(8, auto=True), [8], list[tuple[int, int]]()

    def part(first: int, last: int) -> None:
        most[0] = 3 if first == 8 else most[0]
        if last - first > most[0]:
            raise MemoryError
        done.append((first, last))

    batch.over(20, part)
    assert done == [(0, 8), *((i, i + 2) for i in range(8, 20, 2))]
    done.clear()
    batch, most = Fitting(8, auto=True), [8]
    batch.over(20, part, done.clear)  # begun anew, so that each is there once
    assert done == [(i, i + 2) for i in range(0, 20, 2)]


def test_what_does_not_fit_at_all_is_one_line_with_a_remedy():
    with pytest.raises(InputError, match="memory ran out at --micro-batch 4.* auto or a smaller"):
        walk(Fitting(4, option="--micro-batch"), 9, 3)
    with pytest.raises(InputError, match="--micro-batch 1. Try --gradient-checkpointing") as error:
        walk(Fitting(4, auto=True, option="--micro-batch"), 9, 0)
    assert len(str(error.value)) < 250 and "\n" not in str(error.value)


def test_other_errors_are_not_taken_for_memory():
    def part(first: int, last: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Fitting(4, auto=True).over(4, part)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("x"), True),
        (torch.cuda.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError(MEMORY), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("an illegal memory access was encountered"), False),
        (ValueError("out of memory."), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_say_that_memory_ran_out(error, says):
    assert ran_out(error) == says


def test_memory_that_runs_out_elsewhere_is_one_line():
    with (
        pytest.raises(InputError, match="memory ran out .CUDA out of memory") as error,
        memory_said(),
    ):
        raise torch.OutOfMemoryError(MEMORY + "\n" + 500 * "details ")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="other"), memory_said():
        raise RuntimeError("other")
    with pytest.raises(InputError, match="--micro-batch 4"), memory_said():
        walk(Fitting(4, option="--micro-batch"), 9, 3)


def test_auto_is_for_a_gpu():
    config = SimpleNamespace(micro_batch="auto", rollout_batch=5)
    assert Fitting.of(config, "micro_batch", "cpu").size == 4  # the published one
    assert not Fitting.of(config, "micro_batch", "cpu").auto
    on_gpu = Fitting.of(config, "micro_batch", "cuda:1")
    assert on_gpu.auto and on_gpu.size == LARGEST
    assert not Fitting.of(config, "micro_batch", "cuda", split=True).auto
    given = Fitting.of(config, "rollout_batch", "cuda")
    assert not given.auto and given.size == 5
    assert found(given, on_gpu) == {"memory/micro_batch": LARGEST}


class Two(Ranks):
    """Two processes, of which the other one's failures are given."""

    count = 2

    def __init__(self, failures: list[bool]) -> None:
        self.failures, self.mine = failures, list[bool]()

    def any(self, flag: bool) -> bool:
        self.mine.append(flag)
        return flag or self.failures[len(self.mine) - 1]


def test_what_fails_in_another_process_is_done_again_here():
    ranks, done, after = Two([True, False, True, False, False]), list[tuple[int, int]](), [0]
    batch = Fitting(8, auto=True, ranks=ranks)

    def ended() -> None:
        after[0] += 1

    batch.over(8, lambda first, last: done.append((first, last)), after=ended)
    # Of 8 at once the other runs out, then of the second 4.
    assert done == [(0, 8), (0, 4), (4, 8), (4, 6), (6, 8)] and batch.size == 2
    assert ranks.mine == [False] * 5
    assert after == [3]  # as often as in the other process
    given = Two([])
    Fitting(8, ranks=given).over(8, lambda first, last: None)
    assert given.mine == []  # a size that stays needs no agreement


class Problem:
    """A table (M, T) of a small network's numbers, and a loss that couples them."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.first = torch.randn(3, 5, generator=random, dtype=torch.float64).requires_grad_(True)
        self.second = torch.randn(5, generator=random, dtype=torch.float64).requires_grad_(True)
        self.inputs = torch.randn(6, 4, 3, generator=random, dtype=torch.float64)
        zeros = torch.zeros(6, 4, dtype=torch.float64)
        ones = torch.ones(4, dtype=torch.float64) / 4
        self.rollouts = Rollouts(zeros, zeros, torch.rand(6), torch.zeros(6), ones, 3)
        self.sizes: list[int] = []

    def score(self, rows, steps):
        self.sizes.append(len(rows))
        return torch.tanh(self.inputs[rows, steps] @ self.first) @ self.second

    def objective(self, table, rollouts):
        return (table.sum(0).square().sum() + table.sum().sin()), {"loss": 1.0}

    def reset(self) -> None:
        self.first.grad = self.second.grad = None

    def gradient(self):
        return self.first.grad.clone(), self.second.grad.clone()


def half_a_backward(problem: Problem, most: int, fails_at: int):
    """Backward that, for more than `most`, leaves one weight's gradient behind and then fails; and
    fails once more at the call `fails_at`, whatever its size."""
    calls = [0]

    def backward(values, cotangent):
        calls[0] += 1
        if len(values) > most or calls[0] == fails_at:
            (grad,) = torch.autograd.grad(values, problem.second, cotangent)
            old = problem.second.grad
            problem.second.grad = grad if old is None else old + grad
            raise torch.OutOfMemoryError(MEMORY)
        values.backward(cotangent)

    return backward


@pytest.mark.parametrize("fails_at", [0, 4])
def test_half_of_a_failed_micro_batch_is_not_counted(fails_at):
    problem = Problem()
    two_pass_backward(problem.score, problem.objective, problem.rollouts, 24)
    expected = problem.gradient()
    problem.reset()
    batch = Fitting(16, auto=True)
    two_pass_backward(
        problem.score,
        problem.objective,
        problem.rollouts,
        batch,
        backward=half_a_backward(problem, 5, fails_at),
        restart=problem.reset,
    )
    for one, other in zip(problem.gradient(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    # Calls 1 and 2 are of 16 and 8 and fail; 4 is the second of size 4.
    assert batch.size == (2 if fails_at else 4)
    problem.reset()
    two_pass_backward(  # nothing is left to undo, and the size is kept
        problem.score, problem.objective, problem.rollouts, batch, restart=problem.reset
    )
    assert set(problem.sizes[-6:]) == {batch.size}


def test_without_a_way_back_a_found_size_is_refused():
    problem = Problem()
    with pytest.raises(AssertionError, match="undone"):
        two_pass_backward(problem.score, problem.objective, problem.rollouts, Fitting(4, auto=True))


def test_the_first_pass_goes_on_where_it_failed():
    problem, batch = Problem(), Fitting(16, auto=True)
    expected = log_probs(problem.score, problem.rollouts, 24)
    done: list[int] = []

    def score(rows, steps):
        if len(rows) > 5:
            raise MemoryError
        done.append(len(rows))
        return problem.score(rows, steps)

    table = log_probs(score, problem.rollouts, batch)
    torch.testing.assert_close(table, expected, rtol=1e-12, atol=1e-12)
    assert sum(done) == 24


@pytest.mark.parametrize("algorithm", ["prdp", "nft"])
def test_an_epoch_finds_its_sizes_and_learns_the_same(algorithm):
    """Memory runs out in the network, at more than two images of a pass with a graph, or four."""
    plain, fitted = (tiny_tuner(algorithm, rollout_batch=4, micro_batch=2) for _ in range(2))
    fitted.rollout_batch, fitted.micro_batch = (Fitting(256, auto=True) for _ in range(2))
    network, tries = fitted.policy.denoiser, list[int]()

    def limited(module, inputs):
        tries.append(len(inputs[0]))
        if len(inputs[0]) > (2 if torch.is_grad_enabled() else 4):
            raise torch.OutOfMemoryError(MEMORY)

    network.register_forward_pre_hook(limited)
    metrics, expected = fitted.run_epoch(), plain.run_epoch()
    assert tries[0] == 6  # as many as there are images
    assert metrics["memory/rollout_batch"] == 3 and metrics["memory/micro_batch"] <= 2
    assert not any(name.startswith("memory/m") for name in expected)
    for name, parameter in plain.trained.parameters.items():
        gap = (parameter.grad - fitted.trained.parameters[name].grad).norm()
        assert gap <= 1e-4 * parameter.grad.norm() + 1e-9, name
    assert any(p.grad.abs().max() > 0 for p in plain.trained.parameters.values())
