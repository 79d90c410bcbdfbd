"""Serve a reward over HTTP: python scripts/reward_server.py "10*pickscore+2*hpsv2" --port 8765

    POST {"images": [base64 PNG, ...], "prompts": [text, ...]}  ->  {"rewards": [number, ...]}

A starting point to copy where a reward needs another machine or another environment: replace
`load_reward` by any function of images (B, 3, H, W) in [0, 1] and prompts. Needs aiohttp:
pip install "genpol[reward-server]".

Several clients may ask at once; the reward works on one request at a time. What a client may cost
is bounded: seconds for headers and body, bytes, images, and pixels, which are read from a picture's
header before it is decoded. Browsers are refused. It listens on this machine alone; for other
machines it wants a key, which clients name with ?key_env=VARIABLE or ?key_file=FILE.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hmac
import io
import ipaddress
import os
import signal
import socket
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aiohttp import web
from PIL import Image
from pydantic import BaseModel, ValidationError
from torch import Tensor

RewardFn = Callable[[Tensor, list[str]], Any]


@dataclass
class Limits:
    """What one client may cost."""

    body_bytes: int = 128 * 2**20
    images: int = 64
    pixels: int = 2**25  # of one request, all images together; 400 MB as floats
    headers_seconds: float = 10.0
    body_seconds: float = 60.0
    at_once: int = 8  # requests that are read, or wait for the reward; more are told to come back
    hosts: set[str] = field(default_factory=lambda: {"localhost", socket.gethostname()})
    key: str | None = None


class Refusal(Exception):
    """An answer that is an error: its status, and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Request(BaseModel, strict=True):
    """The body of a request."""

    images: list[str]
    prompts: list[str]


def decode(body: bytes, limits: Limits) -> tuple[Tensor, list[str]]:
    """The images (B, 3, H, W) float in [0, 1] and prompts of a request."""
    try:
        request = Request.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Refusal(400, f"{where}: {first['msg'][:200]}") from None
    count = len(request.images)
    if not count or count != len(request.prompts):
        raise Refusal(400, f"{count} images but {len(request.prompts)} prompts")
    if count > limits.images:
        raise Refusal(413, f"{count} images, at most {limits.images}: send fewer (?batch=N)")
    pictures = []
    for number, text in enumerate(request.images, 1):
        try:  # reads the header only
            data = io.BytesIO(base64.b64decode(text, validate=True))
            pictures.append(Image.open(data, formats=["PNG"]))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise Refusal(413, f"image {number} has more than {limits.pixels} pixels") from None
        except Exception as error:  # whatever a library raises on bytes that it cannot read
            raise Refusal(400, f"image {number} is no base64 PNG: {str(error)[:200]}") from None
    if len({picture.size for picture in pictures}) > 1:
        raise Refusal(400, "the images of one request must have one size")
    width, height = pictures[0].size
    if count * width * height > limits.pixels:
        raise Refusal(413, f"{count} images of {width}x{height}: at most {limits.pixels} pixels")
    try:
        arrays = [np.asarray(picture.convert("RGB")) for picture in pictures]
    except Exception as error:
        raise Refusal(400, f"an image cannot be decoded: {str(error)[:200]}") from None
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255, request.prompts


def make_app(
    reward: RewardFn, limits: Limits, silent: dict[Any, asyncio.TimerHandle]
) -> web.Application:
    """The application: who may ask, then what is asked. `silent`: what drops a connection."""
    worker = ThreadPoolExecutor(1, thread_name_prefix="reward")
    asking = 0

    def work(body: bytes) -> list[float]:
        images, prompts = decode(body, limits)
        try:
            return [float(value) for value in reward(images, prompts)]
        except Exception as error:  # a reward that fails on these images would fail again
            raise Refusal(422, f"{type(error).__name__}: {str(error)[:500]}") from error

    async def score(request: web.Request) -> web.Response:
        nonlocal asking
        if request.content_type != "application/json" or "Content-Encoding" in request.headers:
            raise Refusal(415, "expected Content-Type: application/json, not compressed")
        if asking >= limits.at_once:
            raise Refusal(503, f"{asking} requests are waiting: come back")
        asking += 1
        try:
            try:
                async with asyncio.timeout(limits.body_seconds):
                    body = await request.read()
            except TimeoutError:
                raise Refusal(408, f"no whole body in {limits.body_seconds:g} s") from None
            rewards = await asyncio.get_running_loop().run_in_executor(worker, work, body)
            return web.json_response({"rewards": rewards})
        finally:
            asking -= 1

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        if timer := silent.pop(request.protocol, None):
            timer.cancel()
        try:
            check_sender(request, limits)
            return await handler(request)
        except Refusal as error:
            return web.json_response({"error": str(error)}, status=error.status)
        except web.HTTPException as error:  # aiohttp's own: 404, 405, 413
            return web.json_response({"error": error.reason}, status=error.status)

    async def stop(app: web.Application) -> None:
        worker.shutdown(wait=False, cancel_futures=True)

    app = web.Application(client_max_size=limits.body_bytes, middlewares=[guard])
    app.router.add_post("/{path:.*}", score)
    app.on_cleanup.append(stop)
    return app


def check_sender(request: web.Request, limits: Limits) -> None:
    """Refuse browsers, names that were bent to this machine (DNS rebinding), and wrong keys."""
    if "Origin" in request.headers or "Sec-Fetch-Site" in request.headers:
        raise Refusal(403, "browsers are not served")
    host = request.headers.get("Host", "")
    name = host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]
    try:
        ipaddress.ip_address(name.strip("[]"))  # an address cannot be bent
    except ValueError:
        if name.lower() not in {known.lower() for known in limits.hosts}:
            raise Refusal(403, f'no server of the name "{name[:80]}": see --allow-host') from None
    given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
    if limits.key and not hmac.compare_digest(given, limits.key.encode()):
        raise Refusal(401, "the key is missing or wrong")


async def start(
    reward: RewardFn, limits: Limits, host: str = "127.0.0.1", port: int = 0
) -> tuple[int, Callable[[], Awaitable[None]]]:
    """Listen; returns the port and what closes the server. Port 0 lets the system choose."""
    Image.MAX_IMAGE_PIXELS = limits.pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    silent: dict[Any, asyncio.TimerHandle] = {}  # of connections whose headers have not come yet

    def connection() -> Any:
        protocol = runner.server()  # type: ignore[misc]
        silent[protocol] = loop.call_later(limits.headers_seconds, drop, protocol)
        return protocol

    def drop(protocol: Any) -> None:
        del silent[protocol]
        if protocol.transport is not None:
            protocol.transport.abort()

    async def close() -> None:
        server.close()
        await runner.cleanup()

    runner = web.AppRunner(
        make_app(reward, limits, silent),
        handler_cancellation=True,  # a client that leaves is not scored
        auto_decompress=False,
        keepalive_timeout=15,
        shutdown_timeout=10,
        access_log=None,
    )
    await runner.setup()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, host, port)
    return server.sockets[0].getsockname()[1], close


def read_key(path: Path | None) -> str | None:
    """The key that clients must send: of a file, else of $REWARD_API_KEY, else none."""
    text = path.read_text("ascii") if path else os.environ.get("REWARD_API_KEY", "")
    if path and not text.strip():
        raise SystemExit(f"error: {path} holds no key")
    return text.strip() or None


async def serve(options: argparse.Namespace, reward: RewardFn, limits: Limits) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one ends the process at once."""
    port, close = await start(reward, limits, options.host, options.port)
    print(f"serving {options.reward} at http://{options.host}:{port}", flush=True)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    await close()


def main() -> None:
    from diffusion.errors import InputError
    from diffusion.rewards import load_reward

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reward", help='expression, such as "jpeg_compressibility"')
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to serve other machines")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--allow-host", action="append", default=[], help="a name clients use")
    parser.add_argument("--key-file", type=Path, help="its key; else that of $REWARD_API_KEY")
    parser.add_argument("--insecure", action="store_true", help="other machines need no key")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--trust", action="store_true", help="allow weights that are pickles")
    options = parser.parse_args()
    try:
        limits = Limits(key=read_key(options.key_file))
        limits.hosts |= {options.host, *options.allow_host}
        if options.host not in ("127.0.0.1", "::1", "localhost") and not limits.key:
            if not options.insecure:
                parser.error(f"--host {options.host} without a key: see --key-file, --insecure")
        reward = load_reward(options.reward, device=options.device, trust=options.trust)
        asyncio.run(serve(options, reward, limits))
    except (InputError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
