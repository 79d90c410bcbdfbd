"""A hub of models over HTTP on this machine, which remembers what it was asked for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Folders by repository name. `asked` holds (method, path); `gated` names what is refused."""

    def __init__(self, repositories: dict[str, Path], gated: tuple[str, ...] = ()) -> None:
        self.repositories, self.gated = repositories, gated
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    def files(self, method: str = "GET") -> list[str]:
        """Files that were asked for, in order."""
        paths = [path.partition("/resolve/") for one, path in self.asked if one == method]
        return [rest.partition("/")[2] for _, found, rest in paths if found]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at `hub.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path))
            api = path.startswith("/api/models/")
            parts = path.removeprefix("/api/models").strip("/").split("/")
            name = "/".join(parts[:2])
            if name in hub.gated and not api:
                return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="ask first")
            folder = hub.repositories.get(name)
            if folder is None:
                return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="none")
            if api and "tree" in parts:
                return self.answer(200, json.dumps(tree(folder)).encode())
            if api:
                names = [{"rfilename": entry["path"]} for entry in tree(folder)]
                info = {"id": name, "sha": COMMIT, "siblings": names}
                return self.answer(200, json.dumps(info).encode())
            file = folder / "/".join(parts[4:])
            if not file.is_file():
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            data = file.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            return self.answer(200, data, ETag=etag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def tree(folder: Path) -> list[dict[str, object]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "type": "file",
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        }
        for path in files
    ]
