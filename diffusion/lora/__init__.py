"""LoRAs: files of others in any layout brought into a pipeline, ours written for others."""

from __future__ import annotations

from diffusion.lora.adapters import REFERENCE, TRAINED
from diffusion.lora.files import lora_file, lora_fingerprint
from diffusion.lora.load import load_lora

__all__ = ["REFERENCE", "TRAINED", "load_lora", "lora_file", "lora_fingerprint"]
