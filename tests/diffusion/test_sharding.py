"""Weights that are split over two processes do what whole weights do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_images import SIZES
from forked import FSDP2, in_processes
from tiny_families import FAMILIES, tiny

from diffusion.config import FinetuneConfig
from diffusion.errors import InputError
from diffusion.loading import prepare_pipeline
from diffusion.parts import gathered, here, in_parts
from diffusion.pipelines import ImagePolicy
from diffusion.ranks import Ranks
from diffusion.sharding import block_names, requested
from diffusion.trained_weights import TrainedWeights

CONFIG = FinetuneConfig(epochs=5, inner_steps=2, learning_rate=1e-4, ema=0.9)


def never(what: str, number: float) -> None:
    pass


def asked(policy: ImagePolicy, rows: slice = slice(None)) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, *policy.latent_shape, generator=random)
    t = policy.process(4, sampler="ode").timesteps[:2]
    cond = {k: v[rows] for k, v in policy.encode(["a red square", "a dog"]).items()}
    return x[rows], t[rows], cond


def gradients(policy: ImagePolicy, rows: slice) -> None:
    policy.predict(*asked(policy, rows)).square().sum().mul(1e-3).backward()


def outputs(policy: ImagePolicy) -> list[torch.Tensor]:
    x, t, cond = asked(policy)
    with torch.no_grad():
        return [policy.predict(x, t, cond), policy.predict_reference(x, t, cond)]


def family(name: str, train: str, ranks: Ranks | None) -> list[torch.Tensor]:
    sharding = None if ranks is None else requested()
    pipe = prepare_pipeline(tiny(name))
    policy = ImagePolicy(
        pipe, guidance_scale=1.0, train=train, lora_rank=2, sharding=sharding, **SIZES[name]
    )
    assert all(in_parts(p) for p in policy.trainable().values()) == (ranks is not None)
    gradients(policy, slice(None) if ranks is None else slice(ranks.index, ranks.index + 1))
    grads = {n: p.grad for n, p in policy.trainable().items() if p.grad is not None}
    return [*outputs(policy), *gathered(grads, True).values()]


@pytest.mark.slow
@pytest.mark.parametrize("train", ["lora", "full"])
def test_every_family_has_the_same_outputs_and_gradients_when_split(train):
    def work(ranks: Ranks):
        return {name: family(name, train, ranks) for name in FAMILIES}

    split, _ = in_processes(2, work, FSDP2)
    for name in FAMILIES:
        whole = family(name, train, None)
        assert len(whole) == len(split[name]) > 2
        for one, other in zip(split[name], whole, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def of_sd3(train: str, ranks: Ranks | None, **more) -> ImagePolicy:
    sharding = None if ranks is None else requested()
    pipe = prepare_pipeline(tiny("sd3"))
    return ImagePolicy(
        pipe,
        guidance_scale=1.0,
        train=train,
        lora_rank=2,
        sharding=sharding,
        **SIZES["sd3"],
        **more,
    )


def weights_of(policy: ImagePolicy) -> TrainedWeights:
    return TrainedWeights(policy.trainable(), CONFIG, lambda update: 0.5, never)


def stepped(policy: ImagePolicy, trained: TrainedWeights, rows: slice, times: int) -> list[float]:
    norms = []
    for _ in range(times):
        trained.optimiser.zero_grad(set_to_none=True)
        gradients(policy, rows)
        norms.append(trained.step())
    return norms


def trains(train: str, folder: Path, ranks: Ranks | None, before: dict | None) -> dict:
    """Two steps after those of `before`, and all that is kept of them."""
    policy = of_sd3(train, ranks)
    trained = weights_of(policy)
    if before is not None:
        trained.load_state(before, 2)
    rows = slice(None) if ranks is None else slice(ranks.index, ranks.index + 1)
    norms = stepped(policy, trained, rows, 2)
    found = outputs(policy)
    kept = [here(p).clone() for p in trained.parameters.values()]
    for context in (trained.averaged(), trained.anchored()):
        with context:
            found.append(outputs(policy)[0])
    assert all(
        torch.equal(a, here(b)) for a, b in zip(kept, trained.parameters.values(), strict=True)
    )
    main = ranks is None or ranks.main
    policy.save_weights(folder, write=main)
    return {"norms": norms, "outputs": found, "state": gathered(trained.state(), main)}


def alike(split: dict, whole: dict) -> None:
    assert split["norms"] == pytest.approx(whole["norms"], rel=1e-5)
    assert split["state"].keys() == whole["state"].keys()
    tensors = [*zip(split["outputs"], whole["outputs"], strict=True)]
    tensors += [(split["state"][name], whole["state"][name]) for name in whole["state"]]
    for one, other in tensors:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_split_weights_train_as_whole_ones_and_either_goes_on_from_the_other(train, tmp_path):
    whole = trains(train, tmp_path / "whole", None, None)

    def work(ranks: Ranks):
        first = trains(train, tmp_path / "split", ranks, None)
        return first, trains(train, tmp_path / "again", ranks, whole["state"])

    (split, again), (other, _) = in_processes(2, work, FSDP2)
    assert other["state"] == {}  # one process holds what is gathered
    alike(split, whole)
    alike(again, trains(train, tmp_path / "whole again", None, split["state"]))
    same_files(tmp_path / "split", tmp_path / "whole")


def same_files(split: Path, whole: Path) -> None:
    from safetensors.torch import load_file

    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in split.iterdir()) == names
    for name in names:
        if name.endswith(".safetensors"):
            one, other = load_file(split / name), load_file(whole / name)
            assert list(one) == list(other)
            for key, value in other.items():
                torch.testing.assert_close(one[key], value, atol=1e-5, rtol=1e-4)
        else:
            assert (split / name).read_bytes() == (whole / name).read_bytes()


def noisy(train: str, ranks: Ranks | None, options: dict) -> tuple[list[float], list[torch.Tensor]]:
    """Two steps of a network that was loaded in bf16."""
    pipe = prepare_pipeline(tiny("sd3").to(dtype=torch.bfloat16))
    settings = {"guidance_scale": 1.0, "lora_rank": 2, **SIZES["sd3"], **options}
    policy = ImagePolicy(
        pipe, train=train, sharding=None if ranks is None else requested(), **settings
    )
    rows = slice(None) if ranks is None else slice(ranks.index, ranks.index + 1)
    return stepped(policy, weights_of(policy), rows, 2), outputs(policy)


BY_SIZE = {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "2000"}
COPIES = {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize(
    ("launch", "options"),
    [
        ({}, {}),
        ({}, {"gradient_checkpointing": True}),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}),
        ({}, {"autocast": "bf16"}),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}),
        (BY_SIZE, {}),
        (COPIES, {}),
        ({}, {"lora_dora": True}),
        ({}, {"lora_targets": "all"}),
    ],
)
def test_other_ways_to_split_and_to_compute(train, launch, options):
    if train == "full" and any(name.startswith("lora") for name in options):
        pytest.skip("of LoRAs")
    split, _ = in_processes(2, lambda ranks: noisy(train, ranks, options), FSDP2 | launch)
    whole = noisy(train, None, options)
    rough = train == "lora" or bool(options.get("autocast"))  # passes in bf16
    assert split[0] == pytest.approx(whole[0], rel=2e-2 if rough else 1e-5)
    for one, other in zip(split[1], whole[1], strict=True):
        torch.testing.assert_close(one, other, atol=3e-2 if rough else 1e-5, rtol=0)


# -- what a launch may ask for --------------------------------------------------------------------


def launched(monkeypatch, **more: str) -> None:
    whole = {**FSDP2, "WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in (whole | more).items():
        monkeypatch.setenv(name, value)


def test_without_a_launch_nothing_is_split():
    assert requested() is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"FSDP_VERSION": "1"}, "asks for fsdp_version: 1.*set fsdp_version: 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed.*configs/eight_gpus.yaml"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend: INDUCTOR"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "2"}, "parallelism_config_tp_size: 2"),
        ({"PARALLELISM_CONFIG_DP_SHARD_SIZE": "3"}, "product must be the 2 processes"),
        ({"FSDP_IGNORED_MODULES": "x.*"}, "fsdp_ignored_modules: x"),
        ({"FSDP_AUTO_WRAP_POLICY": "SOMETIMES"}, "cannot be used: Invalid auto wrap policy"),
    ],
)
def test_what_a_launch_cannot_have_is_one_line(more, words, monkeypatch):
    launched(monkeypatch, **more)
    with pytest.raises(InputError, match=words) as error:
        requested()
    assert "\n" not in str(error.value)


def test_what_is_not_used_is_said(monkeypatch):
    said: list[str] = []
    more = {"ACCELERATE_MIXED_PRECISION": "bf16", "FSDP_RESHARD_AFTER_FORWARD": "false"}
    launched(monkeypatch, **more, FSDP_ACTIVATION_CHECKPOINTING="true")
    found = requested(said.append)
    assert found is not None and found.checkpointing and found.copies == 1
    assert [line.split(":")[0] for line in said] == [
        "mixed_precision",
        "fsdp_reshard_after_forward",
    ]


def test_one_process_is_not_split(monkeypatch):
    said: list[str] = []
    launched(monkeypatch, WORLD_SIZE="1")
    assert requested(said.append) is None and "one process" in said[0]


def test_blocks_that_are_not_known_are_one_line():
    with pytest.raises(InputError, match="blocks of Sequential are not known.*SIZE_BASED_WRAP"):
        block_names(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    transformer = tiny("sd3").transformer
    with pytest.raises(InputError, match="has no Blok; its blocks are JointTransformerBlock"):
        block_names(transformer, ["Blok"])
