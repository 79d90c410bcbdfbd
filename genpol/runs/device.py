"""Chooses the device to compute on."""

from __future__ import annotations


def pick_device(asked: str | None, local: int | None = None) -> str:
    """The device asked for; of None and "auto", cuda where there is one, else cpu.

    Args:
        asked: such as "cuda:1".
        local: in a run of several processes, the number of this one on its machine. Each has the
            GPU of its number.

    Raises InputError for one that does not exist or is not there on this machine.
    """
    import torch

    from offline.errors import InputError

    if asked in (None, "auto"):
        asked = "cuda" if torch.cuda.is_available() else "cpu"
        if local is None:
            return asked
    if local is not None and asked.startswith("cuda:"):
        raise InputError(
            f"--device {asked} would put all processes on one GPU; pass --device cuda, with which "
            "each has its own"
        )
    if local is not None and asked == "cuda":
        asked = f"cuda:{local}"
    try:
        torch.zeros(1, device=asked).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f'--device {asked} cannot be used here ({reason}); try "cpu"') from error
    return asked
