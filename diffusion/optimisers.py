"""The optimisers of trained weights by name, and their state as plain tensors.

    adamw        PyTorch's AdamW
    adamw-fused  the same update in one kernel, which rounds differently in the last bits
    adamw-8bit   moments in 8 bits with one scale for each 256 numbers (arXiv 2110.02861), of
                 bitsandbytes, else of torchao; weights of fewer than 4,096 numbers keep 32 bits

The state of one parameter is a dict of tensors and numbers. torchao's moments are tensors made of
several (codes, scale, map), which are stored one by one as "exp_avg.codes" and so on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.parts import in_parts, share

LIBRARIES = ("bitsandbytes", "torchao")  # of adamw-8bit, the one that is preferred first
MOMENTS = ("exp_avg", "exp_avg_sq")
_PARTS = ("codes", "scale", "qmap")
KEYS = (
    "step", *MOMENTS, *(f"{moment}.{part}" for moment in MOMENTS for part in _PARTS),
    "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2",
)  # fmt: skip


def optimiser_name(asked: str | None, device: torch.device | str) -> str:
    """The optimiser that was asked for, else the usual one of the device."""
    return asked or ("adamw-fused" if torch.device(device).type == "cuda" else "adamw")


def library_of(name: str) -> str | None:
    """The library that an optimiser comes from, None for PyTorch.

    Raises:
        InputError: none is installed that has it.
    """
    if name != "adamw-8bit":
        return None
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is not None:
            return library
    raise InputError(
        f"--optimizer adamw-8bit needs {' or '.join(LIBRARIES)}, which are not installed: "
        f"pip install {LIBRARIES[0]}"
    )


def make_optimiser(
    name: str, parameters: Sequence[torch.nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimiser of AdamW's family; see the module.

    Raises:
        InputError: its library is not installed, or it cannot compute where the weights are.
    """
    settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    library = library_of(name)
    if library is not None and any(map(in_parts, parameters)):
        raise InputError(
            f"--optimizer {name} is for weights that are whole on each process, and this launch "
            "splits them (FSDP): pass --optimizer adamw-fused"
        )
    try:
        if library == "bitsandbytes":
            from bitsandbytes.optim import AdamW8bit as Bitsandbytes

            return Bitsandbytes(parameters, **settings)
        if library == "torchao":
            from torchao.optim import AdamW8bit as Torchao

            return Torchao(parameters, **settings)
        if name == "adamw-fused":
            settings["fused"] = True
        return torch.optim.AdamW(parameters, **settings)
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"--optimizer {name} cannot be used here ({reason}); try adamw") from error


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Use another learning rate from the next step on."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def plain(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of one parameter as plain tensors by `KEYS`."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if _is_torchao(value):
            found |= {f"{key}.{part}": getattr(value, part) for part in _PARTS}
        else:
            found[key] = torch.as_tensor(value)
    for key in found:
        if key.endswith(("qmap", "qmap1", "qmap2")):  # one tensor for all, which no file may hold
            found[key] = found[key].clone()
    return found


def restored(tensors: Mapping[str, Tensor], like: torch.nn.Parameter, name: str) -> dict[str, Any]:
    """Undo `plain`, for a parameter and the optimiser of this name.

    Moments get the parameter's own order in memory: kernels read both in that order.
    """
    state: dict[str, Any] = {}
    for key, value in tensors.items():
        if key == "step":
            if "state1" in tensors:
                state[key] = int(value)
            else:  # the fused kernel reads it where the weights are
                state[key] = value.clone().to(like.device if name == "adamw-fused" else "cpu")
        elif "." not in key:
            state[key] = _placed(value, like)
    for moment in MOMENTS:
        if f"{moment}.codes" in tensors:
            from torchao.optim.subclass_8bit import OptimState8bit

            parts = [tensors[f"{moment}.{part}"].clone().to(like.device) for part in _PARTS]
            state[moment] = OptimState8bit(*parts, signed=moment == "exp_avg")
    return state


def _placed(value: Tensor, like: torch.nn.Parameter) -> Tensor:
    if in_parts(like):
        return share(value, like)
    if value.shape != like.shape:
        return value.clone().to(like.device)
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


def _is_torchao(value: Any) -> bool:
    return type(value).__module__.startswith("torchao.")


def shapes_of(tensors: Mapping[str, Tensor], shape: torch.Size) -> dict[str, torch.Size]:
    """The shapes that the stored state of one parameter must have, by its kind; empty where there
    is none yet.

    Args:
        tensors: the state by `KEYS`.
        shape: of the parameter.
    """
    if "step" not in tensors:
        return {}
    expected = {"step": torch.Size(())}
    if "state1" in tensors or "state2" in tensors:
        return expected | {"state1": shape, "state2": shape}
    for moment in MOMENTS:
        split = f"{moment}.codes" in tensors
        expected[f"{moment}.codes" if split else moment] = shape
    return expected
