"""A LoRA's file as it lies on disk: its tensors by layer, its alphas, whatever layout it has.

A layer's name is called a stem here: what stands before `.lora_A.weight`, `.lora_down.weight`,
`.alpha` and so on. What a stem means is known only beside a network; see `names.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from diffusion.errors import InputError, listed, shown

WEIGHTS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
CONFIG = "adapter_config.json"
SCALE = "genpol.lora_scale"  # metadata: what `lora_B` was multiplied by on saving
_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?"  # PEFT may write the adapter's name into a key
_KEY = re.compile(
    rf"(?P<stem>.+?)(?:"
    rf"\.lora_(?P<ab>A|B){_ADAPTER}(?:\.weight)?"
    r"|(?:_lora|\.lora|\.lora_linear_layer)\.(?P<old>down|up)\.weight"
    r"|\.lora_(?P<kohya>down|up|mid)\.weight"
    r"|(?<=_lora\d)\.(?P<numbered>down|up)\.weight"
    rf"|\.lora_(?P<vector>magnitude_vector){_ADAPTER}(?:\.weight)?"
    r"|\.(?P<scale>dora_scale)"
    r"|\.(?P<alpha>alpha)"
    r")"
)
_PATTERN = re.compile(r"\^?[\w.\-]+\$?")  # a layer's name; more would be a stranger's regex


class AdapterConfig(BaseModel):
    """What is read of PEFT's adapter_config.json, or of the same in a file's metadata."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    peft_type: str = "LORA"
    r: int = Field(8, ge=1)
    lora_alpha: FiniteFloat | None = None
    alpha_pattern: dict[str, FiniteFloat] = {}
    use_rslora: bool = False

    def alpha(self, name: str, rank: int) -> float | None:
        """The alpha of a layer of this rank, such that its scale is alpha / rank."""
        alpha = self.lora_alpha
        for pattern, value in self.alpha_pattern.items():
            if not _PATTERN.fullmatch(pattern):
                raise InputError(f"alpha_pattern has {shown(pattern)}, which names no layer")
            plain = re.escape(pattern.removeprefix("^").removesuffix("$"))
            anywhere = "" if pattern.startswith("^") else r"(.*\.)?"
            if re.fullmatch(anywhere + plain, name):
                alpha = value
                break
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


@dataclass
class Parts:
    """The tensors of one stem, and the keys that they came from."""

    down: Tensor | None = None
    up: Tensor | None = None
    mid: Tensor | None = None
    alpha: Tensor | None = None
    magnitude: Tensor | None = None
    keys: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class LoraFile:
    """A file read: `stems` by name, `strange` keys that are no LoRA's, and what it says of itself.

    `configs`: component ("" where it names none) -> configuration.
    """

    source: str
    stems: dict[str, Parts]
    strange: list[str]
    configs: dict[str, AdapterConfig]
    metadata: dict[str, str]

    @property
    def total(self) -> int:
        """Keys in the file."""
        return sum(len(parts.keys) for parts in self.stems.values()) + len(self.strange)


def lora_fingerprint(folder: str) -> str:
    """16 hex digits of a LoRA's file. Raises InputError where there is none."""
    return hashlib.sha256(lora_file(folder).read_bytes()).hexdigest()[:16]


def lora_file(folder: str) -> Path:
    """The safetensors file of a LoRA given by its folder or by the file itself.

    Raises:
        InputError: there is none, there are several, or it is a pickle.
    """
    path = Path(folder)
    found = path if path.is_file() else None
    if path.is_dir():
        files = [path / name for name in WEIGHTS if (path / name).is_file()]
        files = files or sorted(path.glob("*.safetensors"))
        if len(files) > 1 and files[0].name not in WEIGHTS:
            raise InputError(
                f'"{folder}" holds {len(files)} .safetensors files '
                f"({listed(f.name for f in files)}): pass the one that is meant"
            )
        pickles = [f for end in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in path.glob(end)]
        found = next(iter([*files, *pickles]), None)
    if found is None:
        raise InputError(
            f'no LoRA at "{folder}": expected a .safetensors file or a folder that holds '
            f"{' or '.join(WEIGHTS)}, such as runs/x/lora"
        )
    if found.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise InputError(
            f'"{found}" is a pickle, which can run code when opened, and is not read. Convert '
            "it once, if you trust it: safetensors.torch.save_file(torch.load(FILE, "
            'weights_only=True), "lora.safetensors")'
        )
    return found


def read_lora(folder: str) -> LoraFile:
    """Read a LoRA's file, whose layout need not be known.

    Raises:
        InputError: there is none, it cannot be read, or what it says of itself is no
            configuration of a LoRA.
    """
    from safetensors import SafetensorError, safe_open

    file = lora_file(folder)
    try:
        with safe_open(file, "pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {key: opened.get_tensor(key) for key in sorted(opened.keys())}
    except (OSError, SafetensorError) as error:
        raise InputError(
            f'cannot read the LoRA "{file}" as safetensors ({shown(error, 200)}): is it whole?'
        ) from None
    stems, strange = sorted_keys(tensors, str(file))
    return LoraFile(str(file), stems, strange, _configs(file, metadata), metadata)


def sorted_keys(tensors: dict[str, Tensor], source: str) -> tuple[dict[str, Parts], list[str]]:
    """Tensors by stem; and the keys that are no part of a LoRA."""
    stems: dict[str, Parts] = {}
    strange: list[str] = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            strange.append(key)
            continue
        word = next(v for k, v in match.groupdict().items() if k != "stem" and v is not None)
        part = {
            "A": "down", "B": "up", "magnitude_vector": "magnitude", "dora_scale": "magnitude",
        }.get(word, word)  # fmt: skip
        parts = stems.setdefault(match["stem"], Parts())
        if getattr(parts, part) is not None:
            raise InputError(
                f'"{source}" holds more than one LoRA: layer {shown(match["stem"])} has its '
                f"{part} weights twice; save one adapter a file"
            )
        setattr(parts, part, tensor)
        parts.keys[key] = tensor
    return stems, strange


def _configs(file: Path, metadata: dict[str, str]) -> dict[str, AdapterConfig]:
    """What stands in the file's metadata counts before a file beside it."""
    beside, text = file.with_name(CONFIG), metadata.get("lora_adapter_metadata")
    try:
        if text is not None:
            return _by_component(json.loads(text))
        if beside.is_file():
            return {"": AdapterConfig.model_validate_json(beside.read_bytes())}
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        where = "lora_adapter_metadata" if text is not None else f'"{beside}"'
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            said = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        else:
            said = str(error)
        raise InputError(
            f'the LoRA "{file}" says of itself in {where} what is no LoRA\'s configuration '
            f"({shown(said, 200)})"
        ) from None
    return {}


def _by_component(document: object) -> dict[str, AdapterConfig]:
    """ "unet.r", "unet.lora_alpha", "text_encoder.r", ... as a configuration a component."""
    if not isinstance(document, dict):
        raise TypeError("not a table")
    tables: dict[str, dict[str, object]] = {}
    for key, value in document.items():
        component, dot, name = str(key).partition(".")
        table = tables.setdefault(component if dot else "", {})
        table[name if dot else component] = value
    return {name: AdapterConfig.model_validate(table) for name, table in tables.items()}
