"""Judges behind a real local HTTP server, each with another habit."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

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
