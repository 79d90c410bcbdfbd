"""`open_dataset`: opens a dataset of any format, recognised from its files."""

from __future__ import annotations

from pathlib import Path

from offline.data.episodes import Episodes
from offline.errors import InputError
from robots.datasets.hdf5 import open_hdf5, require_file

KNOWN = (
    "robomimic HDF5 (data/demo_0), D4RL HDF5 (observations, actions), a Minari dataset "
    "(minari:NAME, or a folder with data/main_data.hdf5), a LeRobot v3 folder (meta/info.json)"
)


def open_dataset(path: str | Path) -> Episodes:
    """Open a dataset for reading.

    Args:
        path: a file, a folder, or "minari:NAME" for one in Minari's local storage.

    Raises:
        InputError: missing, cut off, or of no known format.
    """
    text = str(path)
    if text.startswith("minari:"):
        from robots.datasets.minari import MinariEpisodes

        return MinariEpisodes(text)
    path = Path(path).expanduser()
    require_file(path)
    return _open_folder(path) if path.is_dir() else _open_file(path)


def _open_folder(path: Path) -> Episodes:
    if (path / "meta" / "info.json").is_file():
        from robots.datasets.lerobot import LeRobotEpisodes

        return LeRobotEpisodes(path)
    for folder in (path / "data", path):
        if (folder / "main_data.hdf5").is_file() or (folder / "metadata.json").is_file():
            from robots.datasets.minari import MinariEpisodes

            return MinariEpisodes(folder)
    files = sorted(p for kind in ("*.hdf5", "*.h5") for p in path.glob(kind))
    hint = f' Did you mean "{files[0]}"?' if files else ""
    raise InputError(f'"{path}" holds no dataset of a known format: {KNOWN}.{hint}')


def _open_file(path: Path) -> Episodes:
    if path.name == "main_data.hdf5":
        from robots.datasets.minari import MinariEpisodes

        return MinariEpisodes(path.parent)
    with open_hdf5(path) as file:
        keys = sorted(file)
    if "data" in keys:
        from robots.datasets.robomimic_hdf5 import RobomimicHdf5

        return RobomimicHdf5(path)
    if "observations" in keys and "actions" in keys:
        from robots.datasets.d4rl import D4rlHdf5

        return D4rlHdf5(path)
    raise InputError(f'"{path}" holds {", ".join(keys[:6]) or "nothing"}, expected one of: {KNOWN}')
