"""What a launcher's environment says of this process; needs no PyTorch."""

from __future__ import annotations

import os

from diffusion.errors import InputError, shown


def launched() -> tuple[int, int, int]:
    """(index, count, index on this machine) as `accelerate launch` and `torchrun` say it; (0, 1, 0)
    without a launcher.

    Raises:
        InputError: the environment names several processes and lacks what they need to find one
            another.
    """
    try:
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count <= 1:
            return 0, 1, 0
        index = int(os.environ["RANK"])
        local = int(os.environ.get("LOCAL_RANK", index))
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            os.environ[name]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"WORLD_SIZE asks for several processes, and the environment does not say which one "
            f"this is ({shown(error)}): start them with accelerate launch or torchrun, or unset "
            "WORLD_SIZE"
        ) from None
    return index, count, local
