"""A command's threads, and the line about slow precisions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from genpol.runs import processor
from genpol.runs.machine import drawing, learning, on_this_machine, with_threads
from genpol.runs.processor import Speed, slow_precisions, times_slower
from offline.threads import Convolution, Product


@dataclass(frozen=True)
class Options:
    threads: int | None = None
    device: str | None = "cpu"
    resume: str | None = None
    autocast: str | None = None
    critic_dtype: str = "float32"
    model_dtype: str = "float32"
    batch_size: int = 32
    hidden: tuple[int, ...] = (64, 64)
    features: int = 700
    image_keys: tuple[str, ...] = ()
    guidance_scale: float | None = 1.0


@on_this_machine()
def command(options: Options, more: int) -> tuple[int | None, int]:
    """The threads that it was told, and those that PyTorch has meanwhile."""
    assert more == 7
    return options.threads, torch.get_num_threads()


def test_a_command_computes_in_its_threads_and_is_told_them(monkeypatch):
    before = torch.get_num_threads()
    assert command(Options(threads=before + 2), 7) == (before + 2, before + 2)
    assert torch.get_num_threads() == before
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert command(Options(), 7) == (3, 3)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert command(Options(), 7) == (1, 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("options", [Options(resume="runs/old"), Options(device="cuda")], ids=str)
def test_pytorchs_own_number_stays(options):
    """In a run from before numbers were stored, so that it goes on bit for bit, and on a GPU."""
    assert with_threads(options) == options
    assert with_threads(Options(resume="runs/new", threads=2)).threads == 2


def test_typical_operations_of_commands():
    assert learning(Options()) == [Product(32, 700, 700)]
    assert Convolution(32, 64, 16) in learning(Options(image_keys=("image",)))
    unet = {"block_out_channels": [320, 640], "sample_size": 64}
    assert drawing(Options(), unet, 4) == [Convolution(4, 320, 64)]
    assert drawing(Options(guidance_scale=5.0), unet, 4) == [Convolution(8, 320, 64)]
    assert drawing(Options(guidance_scale=None), {}, 1) == [Convolution(2, 320, 64)]


def test_a_slow_precision_is_named_before_the_run(monkeypatch, capsys):
    monkeypatch.setattr(processor, "times_slower", lambda precision: 48.3)
    command(Options(threads=1, autocast="bf16"), 7)
    assert capsys.readouterr().out == (
        "warning: --autocast bf16 makes products 48 times slower than float32 on this processor: "
        "leave it out\n"
    )
    command(Options(threads=1), 7)
    assert capsys.readouterr().out == ""


def test_which_options_are_precisions(monkeypatch):
    monkeypatch.setattr(processor, "times_slower", lambda precision: 48.0)
    options = Options(autocast="fp16", critic_dtype="bfloat16", model_dtype="bfloat16")
    flags = [line.split()[0] for line in slow_precisions(options, "cpu")]
    assert flags == ["--autocast", "--critic-dtype", "--model-dtype"]
    # Models learn and imagine on the CPU wherever the agent is.
    assert [line.split()[0] for line in slow_precisions(options, "cuda")] == ["--model-dtype"]
    monkeypatch.setattr(processor, "times_slower", lambda precision: 0.6)
    assert slow_precisions(options, "cpu") == []


def test_a_precision_is_measured_once(monkeypatch):
    times_slower.cache_clear()
    first = times_slower("bfloat16")
    assert 0.05 < first
    monkeypatch.setattr(torch.nn.functional, "linear", None)
    assert times_slower("bfloat16") == first


def test_what_is_not_implemented_is_infinitely_slow(monkeypatch):
    times_slower.cache_clear()
    real = torch.nn.functional.linear

    def linear(x, weight):
        if x.dtype == torch.float16:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")
        return real(x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    assert times_slower("float16") == float("inf")
    times_slower.cache_clear()


def test_the_share_of_the_machines_speed():
    speed = Speed({("float32", 1): 80.0, ("bfloat16", 1): 1.0, ("float32", 2): 150.0})
    assert speed.share(40e9, 1.0) == 0.5
    assert speed.metrics()["machine/gflops_bfloat16_1"] == 1.0
    assert str(speed) == (
        "this machine's GFLOP/s: float32 80 in 1 thread, 150 in 2 threads; bfloat16 1 in 1 thread"
    )
