"""One thread, no network, nobody's home: set before any test imports torch or wandb."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# One thread per process: pytest-xdist runs one worker per core, and numbers stay the same.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")
for _name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
    os.environ.pop(_name, None)

# Fixed, so that caches (matplotlib's fonts) are built once; not ~, so that no test reads a login.
_HOME = Path(tempfile.gettempdir()) / f"genpol-tests-{os.getuid()}"
_HOME.mkdir(exist_ok=True)
os.environ["HOME"] = str(_HOME)
os.environ["XDG_CACHE_HOME"] = str(_HOME / "cache")
os.environ["XDG_CONFIG_HOME"] = str(_HOME / "config")
os.environ["HF_HOME"] = str(_HOME / "huggingface")
os.environ["MPLCONFIGDIR"] = str(_HOME / "matplotlib")
os.environ["MPLBACKEND"] = "Agg"
os.environ["GENPOL_FRAME_CACHE_GB"] = "0"

# Says how MuJoCo renders without a screen, which has to be said before anything imports it.
import robots.envs.make  # noqa: F401
