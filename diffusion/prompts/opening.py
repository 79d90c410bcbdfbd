"""From what the user gave as --prompts to a file, or to the files of a folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from diffusion.errors import InputError, listed, shown
from diffusion.prompts.columns import Columns, Tell
from diffusion.prompts.files import FORMATS, LineFile, PromptFile, unreadable
from diffusion.prompts.tables import SUFFIXES, Tables

TRAIN = "train"
_SPLIT = re.compile(r"(train|test|val|valid|validation|dev|eval)(?=[-_.])", re.IGNORECASE)
_MOST = 2**24  # bytes of a document that says where a dataset's files are


def exists(spec: str) -> bool:
    """Whether a path leads to anything, a folder and a pipe included."""
    return os.path.exists(os.path.expanduser(spec))


def open_prompts(spec: str, column: str | None, tell: Tell = print) -> PromptFile:
    """The file or folder at `spec`, not yet read.

    Args:
        spec: a file in one of `FORMATS`, the lines' formats also packed (.gz); a folder of .parquet
            files; or a folder that `save_to_disk` of the package datasets wrote.
        column: the prompts' column; None for "prompt", else the only one it may be.
        tell: gets a line for each choice that the user did not make.

    Raises:
        InputError: it is nothing of that.
    """
    path = os.path.abspath(os.path.expanduser(spec))
    name = shown(spec, 200)
    columns = Columns(name, column, tell)
    if os.path.isdir(path):
        with unreadable(name):
            return Tables(_files_of(Path(path), name, tell), name, columns)
    if path.lower().endswith(SUFFIXES) and os.path.isfile(path):
        return Tables([path], name, columns)
    return LineFile(path, name, columns)


def _files_of(folder: Path, name: str, tell: Tell) -> list[str]:
    """The files of a folder that hold prompts, in order."""
    if (folder / "dataset_dict.json").is_file():
        return _saved(_split(folder, name, tell), name)
    if (folder / "state.json").is_file():
        return _saved(folder, name)
    files = sorted(
        path for path in folder.iterdir() if path.suffix.lower() == ".parquet" and path.is_file()
    )
    if not files:
        inner = sorted({path.parent.name for path in folder.glob("*/*.parquet")})
        also = f" Its folders {listed(inner)} have some: give one of them." if inner else ""
        raise InputError(
            f"{name} is a folder without .parquet files, and not a saved dataset: give a file of "
            f"prompts ({FORMATS}).{also}"
        )
    return [str(path) for path in _one_split(files, name, tell)]


def _one_split(files: list[Path], name: str, tell: Tell) -> list[Path]:
    """Where the names say several splits ("train-00000.parquet"), the files of the training one."""
    splits = {path: found[1].lower() for path in files if (found := _SPLIT.match(path.name))}
    kinds = sorted(set(splits.values()))
    if len(kinds) < 2 or len(splits) < len(files):
        return files
    if TRAIN not in kinds:
        raise InputError(f"{name} holds the splits {listed(kinds)}: give the files of one.")
    tell(f"{name}: of the splits {listed(kinds)}, the prompts are those of {TRAIN}.")
    return [path for path in files if splits[path] == TRAIN]


def _split(folder: Path, name: str, tell: Tell) -> Path:
    """The folder of the training split, or of the only one."""
    splits = _document(folder / "dataset_dict.json", name).get("splits")
    if not (isinstance(splits, list) and splits and all(isinstance(one, str) for one in splits)):
        raise InputError(f"{name}: dataset_dict.json lists no splits: save the dataset again.")
    if len(splits) > 1 and TRAIN not in splits:
        raise InputError(f"{name} holds the splits {listed(splits)}: give the folder of one.")
    chosen = TRAIN if TRAIN in splits else splits[0]
    if len(splits) > 1:
        tell(f"{name}: of the splits {listed(splits)}, the prompts are those of {TRAIN}.")
    return folder / _inside(chosen, name)


def _saved(folder: Path, name: str) -> list[str]:
    """The Arrow files of a dataset that was saved to disk."""
    listed_files = _document(folder / "state.json", name).get("_data_files")
    if not isinstance(listed_files, list) or not listed_files:
        raise InputError(f"{name}: state.json lists no files of data: save the dataset again.")
    paths = []
    for entry in listed_files:
        file = entry.get("filename") if isinstance(entry, dict) else None
        path = folder / _inside(file, name)
        if not path.is_file() or path.suffix.lower() != ".arrow":
            raise InputError(
                f"{name}: state.json lists {shown(str(file))}, which is no .arrow file there: save "
                "the dataset again."
            )
        paths.append(str(path))
    return paths


def _inside(file: object, name: str) -> str:
    """A name that leads to nowhere but the folder it is in."""
    if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\\0"):
        raise InputError(f"{name} lists {shown(file)}, which is no name of a file in it.")
    return file


def _document(path: Path, name: str) -> dict:
    try:
        if path.stat().st_size > _MOST:
            raise ValueError("it is too large")
        document = json.loads(path.read_text("utf-8"))
        if not isinstance(document, dict):
            raise ValueError("expected an object")
    except (ValueError, RecursionError) as error:
        said = shown(error) if isinstance(error, ValueError) else "it is too deep"
        raise InputError(f"{name}: {path.name} is not the JSON it should be ({said}).") from error
    return document
