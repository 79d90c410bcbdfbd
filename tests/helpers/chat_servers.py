"""A server of the chat interface that answers as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from reward_servers import Answer, running


class Asked(list):
    """The requests that came, as (path, body), and the headers of the last."""

    headers: dict[str, str] = {}


def says(content: Any, finish_reason: str = "stop") -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    whole = {"object": "chat.completion", "choices": [choice | {"finish_reason": finish_reason}]}
    return 200, json.dumps(whole).encode()


def question(body: dict) -> tuple[str, str]:
    """The text and the picture's address of a request."""
    text, picture = body["messages"][0]["content"]
    return text["text"], picture["image_url"]["url"]


@contextmanager
def chatting(
    answer: Callable[[dict], Answer], models: tuple[str, ...] = ("small-vlm",)
) -> Iterator[tuple[str, Asked]]:
    """A server of /v1/models and /v1/chat/completions; its address, and what it is asked."""
    asked = Asked()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                asked.append((self.path, None))
            self.reply(200, json.dumps({"data": [{"id": name} for name in models]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                asked.append((self.path, body))
                asked.headers = dict(self.headers)
            if self.path != "/v1/chat/completions":
                self.reply(404, b"no such page")
            else:
                self.reply(*answer(body))

        def reply(self, status: int, data: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client has left

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with running(server) as url:
        yield f"{url}/v1", asked
