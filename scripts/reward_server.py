"""Serve a reward over HTTP: python scripts/reward_server.py "10*pickscore+2*hpsv2" --port 8765

    POST {"images": [base64 PNG, ...], "prompts": [text, ...]}  ->  {"rewards": [number, ...]}

A starting point to copy where a reward needs another machine or another environment: replace
`load_reward` by any function of images (B, 3, H, W) in [0, 1] and prompts. One request at a time,
standard library only besides. It listens on this machine alone unless --host says otherwise, and
has no authentication: put it on trusted networks only.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import io
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

MAX_BYTES = 256 * 1024 * 1024  # of one request


def decode(body: bytes) -> tuple[Tensor, list[str]]:
    """The images (B, 3, H, W) float in [0, 1] and prompts of a request. Raises ValueError."""
    request = json.loads(body)
    if not isinstance(request, dict) or not {"images", "prompts"} <= request.keys():
        raise ValueError('expected {"images": [...], "prompts": [...]}')
    encoded, prompts = request["images"], request["prompts"]
    if not isinstance(encoded, list) or not isinstance(prompts, list):
        raise ValueError("images and prompts must be lists")
    if not encoded or len(encoded) != len(prompts):
        raise ValueError(f"{len(encoded)} images but {len(prompts)} prompts")
    arrays = []
    for text in encoded:
        try:
            picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
            arrays.append(np.asarray(picture.convert("RGB")))
        except (TypeError, OSError, binascii.Error, UnidentifiedImageError) as error:
            raise ValueError(f"image {len(arrays) + 1} is no base64 PNG: {error}") from error
    if len({array.shape for array in arrays}) > 1:
        raise ValueError("the images of one request must have one size")
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return pixels.float() / 255, [str(prompt) for prompt in prompts]


def make_server(
    reward: Callable[[Tensor, list[str]], Tensor], host: str = "127.0.0.1", port: int = 0
) -> HTTPServer:
    """A server that is bound but not yet running; port 0 lets the system choose."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", 0))
                if not 0 < length <= MAX_BYTES:
                    return self._answer(413, {"error": f"expected 1 to {MAX_BYTES} bytes"})
                images, prompts = decode(self.rfile.read(length))
            except ValueError as error:
                return self._answer(400, {"error": str(error)})
            try:
                rewards = reward(images, prompts)
            except Exception as error:  # a reward that fails on these images would fail again
                return self._answer(422, {"error": f"{type(error).__name__}: {error}"})
            self._answer(200, {"rewards": [float(value) for value in rewards]})

        def _answer(self, status: int, body: dict[str, object]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return HTTPServer((host, port), Handler)


def main() -> None:
    from diffusion.rewards import load_reward

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reward", help='expression, such as "jpeg_compressibility"')
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to serve other machines")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--trust", action="store_true", help="allow weights that are pickles")
    arguments = parser.parse_args()
    reward = load_reward(arguments.reward, device=arguments.device, trust=arguments.trust)
    server = make_server(reward, arguments.host, arguments.port)
    print(f"serving {arguments.reward} at http://{arguments.host}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
