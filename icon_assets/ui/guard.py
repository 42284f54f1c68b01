"""The guard in front of Dagster's web application, which by itself accepts requests from every site that a browser has
open.

Pure ASGI, so that WebSockets also pass through it. The only knowledge of Dagster here is the address of its GraphQL.
"""

import hmac
import html
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

import psutil
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from icon_assets.settings import UiSettings

GRAPHQL = "/graphql"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9._-]*[a-z0-9])?)(:\d{1,5})?")
_NONCE = re.compile(r"'nonce-([A-Za-z0-9+/=_-]+)'")
# A body of any other type can be sent by a form on any page, without the browser asking first.
_GRAPHQL_TYPES = {"application/json", "application/graphql"}


@dataclass(frozen=True)
class Policy:
    """The rules for requests.

    `hosts` are names without port, `origins` host and port of sites that count as this one (a proxy's), `token` is None
    if none is required, `page_scripts` names for a path the scripts that its page has inline, as sources of a
    content-security policy."""

    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    port: int = 0
    token: str | None = None
    page_scripts: Mapping[str, str] = field(default_factory=dict)

    @property
    def cookie(self) -> str:
        """One name per port, because browsers send cookies to every port of a host."""
        return f"icon_assets_ui_{self.port}"


@dataclass(frozen=True)
class Refusal:
    status: int
    reason: str


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def access_token(settings: UiSettings) -> str | None:
    """The required token, generated here if the settings do not contain one. None: no token is required."""
    chosen = settings.token.get_secret_value()
    if chosen == "never" or (chosen == "auto" and is_loopback(settings.host)):
        return None
    return secrets.token_urlsafe(32) if chosen in {"auto", "always"} else chosen


def host_names(settings: UiSettings) -> frozenset[str]:
    """The names under which browsers may ask, in lower case and without port."""
    own = _own_names() if settings.host in {"0.0.0.0", "::"} else [settings.host]  # noqa: S104  (compared, not bound)
    allowed = [name.split(":")[0] for name in settings.allowed_hosts]
    return frozenset(_bracketed(name.lower()) for name in [*_LOOPBACK, *own, *allowed])


def _own_names() -> Iterable[str]:
    """Addresses and name of this machine. A page elsewhere can't have them in its address."""
    yield socket.gethostname()
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family in {socket.AF_INET, socket.AF_INET6}:
                yield each.address.split("%")[0]


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


class Guard:
    """Answers refused requests, passes the others on, and adds security headers to every response."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        send = self._with_security_headers(scope, send)
        refusal = refused(self.policy, scope)
        if refusal and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.reason[:120]})
        elif refusal:
            await PlainTextResponse(f"{refusal.reason}\n", refusal.status)(scope, receive, send)
        elif entrance := _entrance(self.policy, scope):
            await entrance(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _with_security_headers(self, scope: Scope, send: Send) -> Send:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = content_policy(self.policy, scope, headers)
                headers["X-Frame-Options"] = "DENY"
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        return send_secured


def refused(policy: Policy, scope: Scope) -> Refusal | None:
    """Why this request is refused; None if it is passed on (or has the token in its address)."""
    headers = Headers(scope=scope)
    return (
        _host_fault(policy, headers)
        or _origin_fault(policy, headers)
        or _site_fault(scope, headers)
        or _graphql_fault(scope, headers)
        or _token_fault(policy, scope, headers)
    )


def _host_fault(policy: Policy, headers: Headers) -> Refusal | None:
    """A foreign host name for this server would circumvent the browser's rules (DNS rebinding)."""
    hosts = headers.getlist("host")
    match = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
    if match and match["name"] in policy.hosts:
        return None
    return Refusal(
        421,
        f"Host {', '.join(hosts)!r} is not a name of this server; if it is that of a proxy, add it to ui.allowed_hosts",
    )


def _origin_fault(policy: Policy, headers: Headers) -> Refusal | None:
    """Browsers send the origin of the requesting page, except for plain navigation and embedding."""
    own = {headers["host"].lower(), *policy.origins}
    for origin in headers.getlist("origin"):
        scheme, _, host = origin.lower().partition("://")
        if scheme not in {"http", "https"} or host not in own:
            return Refusal(
                403,
                f"this request comes from a different site, {origin!r}; if it is a proxy, add it to ui.allowed_hosts",
            )
    return None


def _site_fault(scope: Scope, headers: Headers) -> Refusal | None:
    """From a different site, only links to a page are accepted. A different port of this host is also a different
    site."""
    sites = set(headers.getlist("sec-fetch-site"))
    changes = scope["type"] == "websocket" or scope["method"] not in {"GET", "HEAD"}
    if sites <= ({"same-origin"} if changes else {"same-origin", "none"}):
        return None
    kind = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
    if not changes and kind == ("navigate", "document") and not _is_graphql(scope):
        return None
    return Refusal(403, "this request comes from a different site; open the page directly")


def _is_graphql(scope: Scope) -> bool:
    return scope["path"].rstrip("/") == GRAPHQL


def _graphql_fault(scope: Scope, headers: Headers) -> Refusal | None:
    """Dagster runs mutations from any request, even from the address of an image. Its own pages use POST; GET shows
    GraphiQL."""
    if scope["type"] == "websocket" or not _is_graphql(scope):
        return None
    if scope["method"] in {"GET", "HEAD"}:
        shows_page = "text/html" in headers.get("accept", "")
        return None if shows_page else Refusal(405, "GraphQL is answered to POST only")
    content_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type in _GRAPHQL_TYPES:
        return None
    return Refusal(415, "GraphQL is answered as application/json or application/graphql only")


def _token_fault(policy: Policy, scope: Scope, headers: Headers) -> Refusal | None:
    if policy.token is None or _address_token(policy, scope) is not None:
        return None
    given = [HTTPConnection(scope).cookies.get(policy.cookie, "")]
    given += [value[7:].strip() for value in headers.getlist("authorization") if value[:7].lower() == "bearer "]
    if any(_is_token(policy, each) for each in given):
        return None
    return Refusal(
        401,
        "A token is required: open the address that `icon-assets ui` printed, or send `Authorization: Bearer TOKEN`",
    )


def _is_token(policy: Policy, given: str) -> bool:
    """Compare in a time that does not depend on the token."""
    return policy.token is not None and hmac.compare_digest(given.encode(), policy.token.encode())


def _address_token(policy: Policy, scope: Scope) -> str | None:
    """Whether the address of a requested page has the right token: `?token=`."""
    if policy.token is None or scope["type"] == "websocket" or scope["method"] != "GET":
        return None
    given = [value for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name == "token"]
    return next((each for each in given if _is_token(policy, each)), None)


def _entrance(policy: Policy, scope: Scope) -> Response | None:
    """The page that replaces the token in the address by a cookie and reloads without it.

    A page, not a redirect: after a link on a different site, browsers send the new cookie only to requests from this
    site's pages.
    """
    token = _address_token(policy, scope)
    if token is None:
        return None
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in query if name != "token"])
    path = "/" + scope.get("raw_path", scope["path"].encode()).decode("latin-1").split("?")[0].lstrip("/\\")
    address = html.escape(f"{path}?{rest}" if rest else path)
    page = f'<!doctype html><meta http-equiv="refresh" content="0;url={address}"><a href="{address}">Dagster</a>'
    response = HTMLResponse(page, headers={"Cache-Control": "no-store"})
    response.set_cookie(policy.cookie, token, httponly=True, samesite="strict", secure=scope["scheme"] == "https")
    return response


def content_policy(policy: Policy, scope: Scope, headers: Headers | MutableHeaders) -> str:
    """What a page may load and run: its own files, and only scripts that Dagster itself marked."""
    nonce = _NONCE.search(headers.get("content-security-policy", ""))
    scripts = (
        f"'nonce-{nonce[1]}' 'strict-dynamic'" if nonce else f"'self' {policy.page_scripts.get(scope['path'], '')}"
    )
    hosts = Headers(scope=scope).getlist("host")
    sockets = f" ws://{hosts[0]} wss://{hosts[0]}" if _host_fault(policy, Headers(scope=scope)) is None else ""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {scripts}".rstrip(),
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "font-src 'self' data:",
            f"connect-src 'self'{sockets}",
            "worker-src 'self' blob:",
            "manifest-src 'self'",
            "media-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
