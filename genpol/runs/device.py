"""Chooses the device to compute on."""

from __future__ import annotations


def pick_device(asked: str | None) -> str:
    """The device asked for; of None and "auto", cuda where there is one, else cpu.

    Raises InputError for one that does not exist or is not there on this machine.
    """
    import torch

    from offline.errors import InputError

    if asked in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=asked).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f'--device {asked} cannot be used here ({reason}); try "cpu"') from error
    return asked
