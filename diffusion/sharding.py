"""A denoiser whose weights are split over the processes of a run: FSDP2, as accelerate asks for it.

`accelerate launch --config_file FILE` puts what FILE says of FSDP into the environment. `requested`
reads it from there, and `Sharding.split` splits a network accordingly: each of its blocks is
gathered for its own pass and let go again. LoRAs are split with the layers that they are in.
accelerate's own `prepare` would do so on GPUs only.

The gradients of all processes are summed, not averaged: each process back-propagates its own rows
of one loss. Weights that pass outside the blocks are let go after every pass as well, because
averages and references take the place of split weights in between, and a gathered copy would not
know of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from diffusion.errors import InputError, listed, shown
from diffusion.launched import launched
from diffusion.parts import gathered

EXAMPLE = "configs/eight_gpus.yaml"
_FILE_SIZE = "10GB"  # of one file of weights, as diffusers' save_pretrained has it


@dataclass(frozen=True)
class Sharding:
    """What a launch asks for.

    plugin: accelerate's settings of FSDP2 (`FullyShardedDataParallelPlugin`).
    copies: groups of processes, each of which holds all of the weights.
    checkpointing: whether activations are to be recomputed in the backward pass.
    """

    plugin: Any
    copies: int = 1
    checkpointing: bool = False

    def split(
        self, network: torch.nn.Module, device: torch.device, autocast: torch.dtype | None = None
    ) -> None:
        """Split a network's weights in place; its class is then derived from it, by the same name.

        Args:
            network: on the host, so that one block at a time passes through the device.
            device: of the passes.
            autocast: the type of number that weights are gathered in, where passes compute in it.
                The weights that each process keeps stay as they are.

        Raises:
            InputError: the network has no blocks of the names that are asked for, or none.
        """
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            FSDPModule,
            MixedPrecisionPolicy,
            OffloadPolicy,
            fully_shard,
        )

        blocks = self._blocks(network)
        count = dist.get_world_size()
        shape = (self.copies, count // self.copies) if self.copies > 1 else (count,)
        names = ("copies", "parts")[-len(shape) :]
        offload = self.plugin.cpu_offload if device.type != "cpu" else OffloadPolicy()
        settings: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, shape, mesh_dim_names=names),
            "offload_policy": offload,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=autocast,
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,  # it would round the timesteps
            ),
            "reshard_after_forward": True,
            # Whole numbers, as quantised weights are, cannot be split; every process has them.
            "ignored_params": {p for p in network.parameters() if not p.is_floating_point()},
        }
        for block in blocks:
            fully_shard(block, **settings)
        fully_shard(network, **settings)
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        # Configurations that are saved name the class.
        type(network).__name__ = type(network).__mro__[FSDPModule._orig_cls_mro_index].__name__

    def _blocks(self, network: torch.nn.Module) -> list[torch.nn.Module]:
        """The modules that are gathered one at a time, inner ones before outer ones."""
        from torch.distributed.fsdp.wrap import (
            size_based_auto_wrap_policy,
            transformer_auto_wrap_policy,
        )

        inside = [
            module
            for module in list(network.modules())[:0:-1]
            if not isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict)
        ]
        policy = self.plugin.auto_wrap_policy
        if policy is transformer_auto_wrap_policy:
            names = block_names(network, self.plugin.transformer_cls_names_to_wrap)
            return [module for module in inside if type(module).__name__ in names]
        if policy is size_based_auto_wrap_policy:
            least = self.plugin.min_num_params
            found = [m for m in inside if sum(p.numel() for p in m.parameters()) > least]
            if not found:
                raise InputError(
                    f"fsdp_min_num_params: no part of {type(network).__name__} has more than "
                    f"{least} numbers, so FSDP would gather all of it at once: pass fewer, or set "
                    "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"
                )
            return found
        raise InputError(
            "fsdp_auto_wrap_policy: NO_WRAP gathers the whole network at once, which splitting is "
            "to avoid: set TRANSFORMER_BASED_WRAP"
        )


def requested(say: Callable[[str], None] = print) -> Sharding | None:
    """The sharding that the launch asks for; None where it asks for none, or for one process.

    Args:
        say: is told what a configuration sets and is not used.

    Raises:
        InputError: the launch asks for an engine or an option that fine-tuning does not have.
    """
    _refuse_others()
    if not _on("ACCELERATE_USE_FSDP"):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise InputError(
            f"the launch's configuration asks for fsdp_version: {shown(version)}, and fine-tuning "
            f"has version 2 alone: set fsdp_version: 2, as in {EXAMPLE}"
        )
    _refuse_options()
    count = launched()[1]
    if count == 1:
        say("FSDP of the launch's configuration is not used: there is one process")
        return None
    from accelerate.utils import FullyShardedDataParallelPlugin

    try:
        plugin = FullyShardedDataParallelPlugin()
    except (ValueError, KeyError) as error:
        raise InputError(
            f"the launch's configuration of FSDP cannot be used: {shown(error, 200)}; {EXAMPLE} "
            "is one that can"
        ) from error
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        say(
            f"mixed_precision: {precision} of the launch's configuration is not used: --autocast "
            "and --dtype say what passes compute in"
        )
    if not plugin.reshard_after_forward:
        say(
            "fsdp_reshard_after_forward: false of the launch's configuration is not used: weights "
            "change between passes, so they are let go after each"
        )
    return Sharding(plugin, _copies(count), bool(plugin.activation_checkpointing))


def _on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")


def _refuse_others() -> None:
    for variable, engine in (("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")):
        if _on(f"ACCELERATE_USE_{variable}"):
            raise InputError(
                f"the launch's configuration asks for {engine}, which fine-tuning does not use. "
                "FSDP2 splits weights, gradients and optimiser over the processes as ZeRO-3 does: "
                f"launch with --config_file {EXAMPLE}"
            )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("no", ""):
        raise InputError(
            f"the launch's configuration sets dynamo_backend: {shown(backend)}, which fine-tuning "
            "does not take from there: leave it out"
        )


def _refuse_options() -> None:
    for name in ("TP_SIZE", "CP_SIZE", "SP_SIZE"):
        size = os.environ.get(f"PARALLELISM_CONFIG_{name}", "1")
        if size not in ("1", ""):
            raise InputError(
                f"the launch's configuration sets parallelism_config_{name.lower()}: "
                f"{shown(size)}; fine-tuning has parallelism_config_dp_replicate_size and "
                "parallelism_config_dp_shard_size alone"
            )
    if ignored := os.environ.get("FSDP_IGNORED_MODULES"):
        raise InputError(
            f"the launch's configuration sets fsdp_ignored_modules: {shown(ignored)}; the "
            "gradients of such modules would not be summed over the processes. Leave it out"
        )


def _copies(count: int) -> int:
    """Groups of processes that each hold all of the weights."""
    try:
        copies = int(os.environ.get("PARALLELISM_CONFIG_DP_REPLICATE_SIZE") or 1)
        parts = int(os.environ.get("PARALLELISM_CONFIG_DP_SHARD_SIZE") or count // copies)
        right = copies * parts == count
    except (ValueError, ZeroDivisionError):
        right = False
    if not right:
        raise InputError(
            "the launch's configuration sets parallelism_config_dp_replicate_size and "
            f"parallelism_config_dp_shard_size, whose product must be the {count} processes"
        )
    return copies


def block_names(network: torch.nn.Module, wanted: list[str] | None = None) -> list[str]:
    """The classes of a network's blocks: those asked for, else those that diffusers keeps whole.

    Raises:
        InputError: one that is asked for is not in the network; or the network has none.
    """
    there = {type(module).__name__ for module in network.modules()}
    kind = type(network).__name__
    usual = [name for name in getattr(network, "_no_split_modules", None) or [] if name in there]
    for name in wanted or []:
        if name not in there:
            raise InputError(
                f"fsdp_transformer_layer_cls_to_wrap: {kind} has no {shown(name)}; its blocks are "
                f"{listed(usual) or 'not known'}"
            )
    found = wanted or usual
    if not found:
        raise InputError(
            f"the blocks of {kind} are not known, so FSDP cannot split it by "
            "TRANSFORMER_BASED_WRAP: name them in fsdp_transformer_layer_cls_to_wrap, or set "
            "fsdp_auto_wrap_policy: SIZE_BASED_WRAP and fsdp_min_num_params"
        )
    return found


def save_whole(network: torch.nn.Module, folder: Path, write: bool) -> None:
    """Save a split network as `save_pretrained` saves one that is whole: the same files.

    Collective. A device holds one more weight at a time, and the host of the process that writes
    holds those of one file.

    Args:
        network: of a class of diffusers, split.
        folder: where to.
        write: whether this is the process that writes.
    """
    from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    weights = network.state_dict()
    files = split_torch_state_dict_into_shards(
        {n: torch.empty(t.shape, dtype=t.dtype, device="meta") for n, t in weights.items()},
        filename_pattern=SAFETENSORS_WEIGHTS_NAME.replace(".", "{suffix}."),
        max_shard_size=_FILE_SIZE,
    )
    for file, names in files.filename_to_tensors.items():
        found = gathered({name: weights[name] for name in names}, write)
        if write:
            complete = {name: tensor.contiguous() for name, tensor in found.items()}
            save_file(complete, folder / file, metadata={"format": "pt"})
    if write:
        cast(Any, network).save_config(folder)
        if files.is_sharded:
            index = {"metadata": dict(files.metadata), "weight_map": files.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, "utf-8")
