"""Real HTTP servers on 127.0.0.1 that speak the documented shapes of image services, and misbehave on request."""

import base64
import contextlib
import hashlib
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from PIL import Image


def png(seed="", size=(8, 8)):
    """A picture whose colour depends on a text."""
    content = io.BytesIO()
    Image.new("RGB", size, tuple(hashlib.sha256(str(seed).encode()).digest()[:3])).save(content, format="PNG")
    return content.getvalue()


def b64(content):
    return base64.b64encode(content).decode()


def records(folder):
    """What a guard recorded in a folder; what the log records about itself is left out."""
    lines = "".join(path.read_text() for path in sorted((folder / "segments").iterdir())).splitlines()
    return [record for line in lines if (record := json.loads(line))["event"].startswith("guard.")]


class Service:
    """A server in a thread. `routes` maps "METHOD /path" to a function of the query or the body that returns an
    answer, and "METHOD /folder/*" to a function of the last part of the path.

    With an `ssl.SSLContext` it speaks TLS. `seen` lists every request as (method, path, content). A function may
    raise `Fault` to answer otherwise.
    """

    def __init__(self, routes=(), tls=None):
        self.routes = dict(routes)
        self.seen = []
        self.headers = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(dict(parse_qsl(urlsplit(self.path).query)))

            def do_POST(self):
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, content):
                path = urlsplit(self.path).path
                service.seen.append((self.command, path, content))
                service.headers.append(dict(self.headers))
                route, given = service.routes.get(f"{self.command} {path}"), content
                if route is None:
                    folder, _, given = path.rpartition("/")
                    route = service.routes.get(f"{self.command} {folder}/*")
                if route is None:
                    return self.send_error(404)
                try:
                    answer = route(given)
                except Fault as fault:
                    with contextlib.suppress(OSError):
                        fault.send(self)
                    return None
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        self.url = f"http{'' if tls is None else 's'}://127.0.0.1:{self.server.server_address[1]}"

    def posted(self, path):
        """What was sent to a path."""
        return [content for method, found, content in self.seen if method == "POST" and found == path]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Fault(Exception):  # noqa: N818 - what it does, not what is wrong
    """An answer that is none of the documented ones."""

    def send(self, handler):
        raise NotImplementedError


class Status(Fault):
    def __init__(self, status, body=b"{}", **headers):
        self.status, self.body, self.extra = status, body, headers

    def send(self, handler):
        handler.send_response(self.status)
        for name, value in self.extra.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(self.body)))
        handler.end_headers()
        handler.wfile.write(self.body)


class Silent(Fault):
    """Says nothing for some seconds."""

    def __init__(self, seconds):
        self.seconds = seconds

    def send(self, handler):
        time.sleep(self.seconds)


class Drip(Fault):
    """Sends one byte at a time, of headers or of the body, and never ends."""

    def __init__(self, headers=False):
        self.only_headers = headers

    def send(self, handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"X-Slow: " if self.only_headers else b"\r\n"))
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)


class Cut(Fault):
    """Promises more than it sends."""

    def __init__(self, body=b'{"images": ['):
        self.body = body

    def send(self, handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self.body) + 100))
        handler.end_headers()
        handler.wfile.write(self.body)
        handler.close_connection = True


class Endless(Fault):
    """Sends without end, as fast as it can."""

    def send(self, handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            handler.wfile.write(b" " * 65536)


class NoProtocol(Fault):
    """Says what was asked for, and nothing that HTTP knows."""

    def send(self, handler):
        handler.wfile.write(b"a photo of Mara Voss\r\n\r\n")
        handler.close_connection = True


class Dropped(Fault):
    """Closes the connection after reading the request."""

    def send(self, handler):
        handler.close_connection = True


FAULTS = {
    "error": Status(500, b'{"detail": "a photo of Mara Voss"}'),
    "redirect": Status(302, Location="http://127.0.0.1:1/"),
    "moved for good": Status(308, Location="https://example.com/"),
    "compressed": Status(200, b"x", Content_Encoding="gzip"),
    "no JSON": Status(200, b"<html>"),
    "deep JSON": Status(200, b"[" * 100_000),
    "another shape": Status(200, b'{"pictures": []}'),
    "a list": Status(200, b"[1]"),
    "cut off": Cut(),
    "dropped": Dropped(),
    "no HTTP": NoProtocol(),
    "endless": Endless(),
    "slow body": Drip(),
    "slow headers": Drip(headers=True),
    "silent": Silent(3),
}
"""What can go wrong between a request and its answer. Limits for these: 0.5 s, 100 kB."""

TIGHT = {"time_limit": 0.5, "max_answer_bytes": 100_000}


def raising(fault):
    def route(content):
        raise fault

    return route
