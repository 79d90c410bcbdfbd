"""What a checkpoint says of itself before a weight is read: its pipeline, parts and small files.

A checkpoint is a folder that `save_pretrained` wrote, or the same on the hub. Of a hub id only the
small JSON files that are asked for are fetched here, so that an unsupported model is refused before
gigabytes are downloaded.
"""

from __future__ import annotations

import importlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusion.errors import InputError, listed, shown

INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts that are never called
# Of a tokeniser's folder one of these is its vocabulary; without, transformers makes an empty one.
VOCABULARY = (
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
LIBRARIES = ("diffusers", "transformers")


class Checkpoint:
    """A pipeline's folder or hub id.

    Args:
        source: the folder, or the hub id.
        name: what messages call it.
        option: the option that named it.

    Raises:
        InputError: it has no readable model_index.json.
    """

    def __init__(self, source: str, name: str | None = None, option: str = "--model") -> None:
        self.source, self.name, self.option = source, name or source, option
        self.folder = Path(source) if Path(source).is_dir() else None
        path = self.fetched(INDEX)
        if path is None:
            raise InputError(self._no_index())
        index = self._read(path, INDEX)
        kind = index.get("_class_name")
        if isinstance(kind, list):  # a community pipeline, which brings code of its own
            kind = kind[-1] if kind else None
        if not isinstance(kind, str):
            raise InputError(
                f'cannot load pipeline "{self.name}": its {INDEX} has no _class_name, so nothing '
                "says which pipeline it is"
            )
        self.class_name = kind
        self.nulls = {part for part, value in index.items() if value == [None, None]}
        self.parts = {
            part: (str(value[0]), str(value[1]))
            for part, value in index.items()
            if _names_a_class(value) and value[0] is not None and value[1] is not None
        }

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """A part's own configuration; empty where it has none.

        Raises:
            InputError: it is no JSON object.
        """
        name = f"{part}/{file}"
        path = self.fetched(name)
        return {} if path is None else self._read(path, name)

    @cached_property
    def files(self) -> list[str]:
        """Names of all files, relative; empty where the hub cannot be asked."""
        if self.folder is not None:
            paths = (path for path in self.folder.rglob("*") if path.is_file())
            return sorted(path.relative_to(self.folder).as_posix() for path in paths)
        from huggingface_hub import HfApi

        try:
            return sorted(HfApi().list_repo_files(self.source))
        except Exception:  # offline: what is in the cache is all there is
            return []

    def fetched(self, name: str) -> Path | None:
        """A small file as it lies here, fetched from the hub where need be; None: there is none.

        Raises:
            InputError: the hub does not know the model, or cannot be asked.
        """
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        return _from_hub(self.source, name, self.option)

    def component(self, part: str) -> type | None:
        """The class of a part; None for a library that diffusers resolves itself.

        Raises:
            InputError: the library has no such class.
        """
        library, kind = self.parts[part]
        if library not in LIBRARIES:
            return None
        module = importlib.import_module(library)
        found = getattr(module, kind, None)
        if not isinstance(found, type):
            raise InputError(
                f'the {part} of "{self.name}" is a {shown(kind)}, which {library} '
                f"{module.__version__} does not have: a newer model (upgrade {library}), or a "
                f"mistake in {INDEX}"
            )
        return found

    def _read(self, path: Path, name: str) -> dict[str, Any]:
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f'cannot load pipeline "{self.name}": its {name} is no JSON '
                f"({shown(error)}); was it downloaded whole?"
            ) from error
        if not isinstance(found, dict):
            raise InputError(
                f'cannot load pipeline "{self.name}": its {name} is no JSON object but '
                f"{shown(found)}"
            )
        return found

    def _no_index(self) -> str:
        found = f'"{self.name}" has no {INDEX}, so it is not a diffusers pipeline'
        files = set(self.files)
        if any(name.endswith("lora_weights.safetensors") for name in files):
            return f"{found} but a LoRA: pass it as --lora, and its model as --model"
        if "config.json" in files:
            return f"{found} but one network of it; pass the folder of the whole pipeline"
        single = sorted(n for n in files if n.endswith(".safetensors") and "/" not in n)
        if single:
            where = "download one and pass" if self.folder is None else "pass"
            return f"{found}; it holds {listed(single)}: {where} that file as --model"
        return f"{found} folder; pass the folder that save_pretrained() wrote"


def absent(found: Checkpoint) -> dict[str, Any]:
    """What diffusers has to be told of as None: parts that are never called, and those that the
    checkpoint does without, such as SD3's T5."""
    import diffusers

    kind: Any = getattr(diffusers, found.class_name, None)
    takes = set(kind._get_signature_keys(kind)[0]) if kind else set(UNUSED) & set(found.parts)
    named = set(found.parts) - set(UNUSED)
    return dict.fromkeys(sorted((takes | found.nulls) - named))


def _names_a_class(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2


def _from_hub(repo: str, name: str, option: str) -> Path | None:
    from huggingface_hub import errors, hf_hub_download

    said = f'{option} "{repo}" is no folder here'
    try:
        return Path(hf_hub_download(repo, name))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if name != INDEX:
            return None  # not in the cache, which may lack what the model lacks
        raise InputError(
            f"{said}, and the hub cannot be asked for it ({shown(_cause(error), 120)}); check the "
            "name and the connection, or pass the path of a folder"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise InputError(
            f'"{repo}" is gated: accept its licence on https://huggingface.co/{repo}, and log in '
            "with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{said}, and the hub has no public model of that name; check the spelling, and log in "
            "with `hf auth login` if it is private"
        ) from error
    except errors.HFValidationError as error:
        raise InputError(f"{said}, and no hub id (owner/name) either") from error
    except Exception as error:  # HTTP and the network fail in many ways
        raise InputError(
            f"{said}, and the hub does not answer as expected: {shown(error, 160)}"
        ) from error


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ or error


def require_parts(found: Checkpoint, may_lack: tuple[str, ...] = ()) -> None:
    """Check that a checkpoint names every part that its pipeline needs, of a class that exists,
    and, in a folder, that each has its own.

    Raises:
        InputError: it does not.
    """
    import diffusers

    kind = getattr(diffusers, found.class_name, None)
    if kind is None:
        return  # one of a user's own; diffusers finds it, or says that it does not
    needed = set(kind._get_signature_keys(kind)[0]) - set(UNUSED) - set(may_lack)
    if missing := sorted(needed - set(found.parts)):
        raise InputError(
            f'"{found.name}" has no {listed(missing)} (absent or null in {INDEX}), which a '
            f"{found.class_name} needs here"
        )
    for part in sorted(set(found.parts) - set(UNUSED)):
        found.component(part)
        if found.folder is not None and not (found.folder / part).is_dir():
            raise InputError(
                f'cannot load pipeline "{found.name}": it has no folder {part}/, which its {INDEX} '
                "names; was it copied whole?"
            )
        vocabulary = {f"{part}/{name}" for name in VOCABULARY}
        if part.startswith("tokenizer") and found.files and vocabulary.isdisjoint(found.files):
            raise InputError(
                f'cannot load pipeline "{found.name}": its {part}/ has no vocabulary '
                f"({', '.join(VOCABULARY[:3])}, ...); was it copied whole?"
            )
