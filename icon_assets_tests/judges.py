"""Judges behind a real local HTTP server, each with another habit; and servers that do not keep to HTTP."""

import base64
import gzip
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import quote

SHOWN = re.compile(r"<answer-([AB])-\w+>\n(.*?)\n</answer", re.DOTALL)
Habit = Callable[["Service", dict[str, Any]], tuple[int, str, dict[str, str]]]


@dataclass
class Service:
    """A running service: what it was asked, with which headers, and how often it has failed."""

    habit: Habit
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=Lock)
    url: str = ""


def answers_shown(request: dict[str, Any]) -> dict[str, str]:
    return dict(SHOWN.findall(request["messages"][1]["content"]))


def said(text: str) -> tuple[int, str, dict[str, str]]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}), {}


def good(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    """Prefers the longer answer."""
    shown = {name: len(text) for name, text in answers_shown(request).items()}
    verdict = "TIE" if shown["A"] == shown["B"] else max(shown, key=lambda name: shown[name])
    return said(f"One says more.\nVERDICT: {verdict}")


def biased(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    """Prefers whatever comes first."""
    return said('{"verdict": "A"}')


def garbage(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    """Never gets to the point."""
    return said("VERDICT: A would be too easy; VERDICT: B too. Both have merits.")


def no_json(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    return 200, "<html>It works!</html>", {}


def hasty_twice(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    """Too many requests, twice; then good."""
    if len(service.asked) <= 2:
        return 429, "slow down", {"Retry-After": "7"}
    return good(service, request)


def broken(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    return 500, "out of order", {}


def short_of_context(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    """Takes no long texts."""
    if max(map(len, answers_shown(request).values())) > 100:
        error = {"message": "This model's maximum context length is 64 tokens.", "code": "context_length_exceeded"}
        return 400, json.dumps({"error": error}), {}
    return good(service, request)


def locked(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    return 401, json.dumps({"error": f"bad key {service.keys[-1]}"}), {}


def moved(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    return 302, "", {"Location": f"{service.url}/elsewhere"}


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what some tests are about."""


@contextmanager
def serving(habit: Habit) -> Iterator[Service]:
    service = Service(habit)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with service.lock:
                service.asked.append(json.loads(body))
                service.keys.append(self.headers.get("Authorization"))
                service.paths.append(self.path)
                status, text, headers = service.habit(service, service.asked[-1])
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = _Quiet(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


Talk = Callable[[socket.socket, str, Event], None]


@contextmanager
def talking(talk: Talk, secured: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of a server that answers each request with what `talk` sends, byte by byte as it likes. It gets the
    socket, the key it was sent, and an event that is set when nobody wants to hear more."""
    done = Event()

    def serve(connection: socket.socket) -> None:
        with suppress(OSError):  # the client hung up: what most of these are about
            if secured:
                connection = secured.wrap_socket(connection, server_side=True)
            head = _head(connection).decode()
            talk(connection, head.split("Authorization: ")[-1].split("\r\n")[0], done)
        connection.close()

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        try:
            yield f"http{'s' if secured else ''}://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _head(connection: socket.socket) -> bytes:
    read = b""
    while b"\r\n\r\n" not in read and (more := connection.recv(65536)):
        read += more
    return read


def repeats_the_key_everywhere(connection: socket.socket, key: str, done: Event) -> None:
    """In the reason phrase, in headers, as address to go to and in the body."""
    connection.sendall(
        f"HTTP/1.1 418 bad {key}\r\nLocation: http://x:{key}@127.0.0.1/\r\nX-Key: {key}\r\nRetry-After: "
        f"{key}\r\n\r\n{key}".encode()
    )


def moves_on_with_the_key(connection: socket.socket, key: str, done: Event) -> None:
    connection.sendall(f"HTTP/1.1 307 {key}\r\nLocation: /v1/{key}\r\nContent-Length: 0\r\n\r\n".encode())


def encodes_the_key(connection: socket.socket, key: str, done: Event) -> None:
    """As a redirect, a debugging page and a proxy would."""
    plain = key.removeprefix("Bearer ")
    forms = [quote(plain, safe=""), base64.b64encode(f"x:{plain}".encode()).decode(), plain.encode().hex()]
    connection.sendall(f"HTTP/1.1 400 Bad\r\nLocation: /?{forms[0]}\r\n\r\n{' '.join(forms)}".encode())


def fails_with_the_key(connection: socket.socket, key: str, done: Event) -> None:
    connection.sendall(f"HTTP/1.1 500 {key}\r\nContent-Length: 0\r\n\r\n".encode())


def speaks_no_http(connection: socket.socket, key: str, done: Event) -> None:
    """As HTTP/0.9 and many other services would."""
    connection.sendall(f"<html>{key}\x00\r\n\r\n".encode())


def drips_headers(connection: socket.socket, key: str, done: Event) -> None:
    """A byte now and then: no single read ever times out."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not done.wait(0.02):
        connection.sendall(b"a")


def drips_news(connection: socket.socket, key: str, done: Event) -> None:
    """Interim replies without end."""
    while not done.wait(0.02):
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")


def drips_a_body(connection: socket.socket, key: str, done: Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not done.wait(0.02):
        connection.sendall(b"a")


def never_ends(connection: socket.socket, key: str, done: Event) -> None:
    """As fast as it can."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not done.is_set():
        connection.sendall(b"a" * 65536)


def has_endless_headers(connection: socket.socket, key: str, done: Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not done.is_set():
        connection.sendall(b"X: " + b"a" * 65536)


def grows_when_unpacked(connection: socket.socket, key: str, done: Event) -> None:
    """30 kB of gzip that are 30 MB of JSON."""
    body = gzip.compress(b"[" * 30_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def breaks_off(connection: socket.socket, key: str, done: Event) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{"choices": [')
