"""In place of `genpol`: a server that only says that it is there, and a learner that only waits.

`python -m stub_command serve --port N` answers /healthz. `... value --output DIR --wait S` writes a
checkpoint, waits, and leaves DIR/value and summary.json; with --resume DIR it goes on. What a
command says and does is decided by its words, so that tests need no libraries and no seconds.
"""

from __future__ import annotations

import http.server
import os
import signal
import sys
import time
from pathlib import Path


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"OK\n")

    def log_message(self, *words):
        pass


def serve() -> None:
    http.server.HTTPServer(("127.0.0.1", int(option("--port"))), Handler).serve_forever()


def learn() -> None:
    run = Path(option("--resume") or option("--output"))
    if option("--resume") and (run / "spoilt").exists():
        print("error: the data has changed", file=sys.stderr)
        sys.exit(2)
    (run / "checkpoints" / "step-000001").mkdir(parents=True, exist_ok=True)
    with open(run / "starts", "a") as file:
        file.write(("resumed" if option("--resume") else "begun") + "\n")
    (run / "niceness").write_text(str(os.nice(0)))
    time.sleep(float(option("--wait", "0")))
    (run / "value").mkdir(exist_ok=True)
    (run / "value" / "words").write_text(" ".join(sys.argv[1:]))
    (run / "summary.json").write_text("{}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.argv[1] == "fail":
        print("first line\nerror: no such thing", file=sys.stderr)
        sys.exit(2)
    (serve if sys.argv[1] == "serve" else learn)()
