"""A small HTTP server of a folder that knows range requests, as every object store does.

It remembers what it was asked for.
"""

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextlib.contextmanager
def serve(folder: Path, ranges: bool = True) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The address of `folder` and the list of (path, range) that grows with every GET.

    With `ranges` off, all of a file is sent always.
    """
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Range", "")))
            self._answer(send=True)

        def _answer(self, send: bool) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            # "bytes=5-" is all from the sixth byte on, "bytes=-5" the last five.
            found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")) if ranges else None
            part = data
            if found:
                first, last = found.groups()
                part = data[int(first) : int(last) + 1 if last else None] if first else data[-int(last) :]
            self.send_response(206 if found else 200)
            if ranges:
                self.send_header("Accept-Ranges", "bytes")
            if found:
                start = int(first) if first else len(data) - len(part)
                self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if send:
                self.wfile.write(part)

        def log_message(self, *args: object) -> None:
            pass

    # Port 0 is any free one, as tests run beside each other.
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
