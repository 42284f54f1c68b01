"""The guard before Dagster's web application: what it refuses, what it lets through, what it adds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from icon_assets.core.errors import IconError
from icon_assets.settings import UiSettings
from icon_assets.ui.guard import Guard, Policy, access_token, host_names
from icon_assets.ui.webserver import graphiql_scripts
from icon_assets.workspace import Workspace

OWN = "127.0.0.1:3000"
TOKEN = "t0ken-of-this-test"
HOSTS = host_names(UiSettings())
Headers = Mapping[str, str]


class Behind:
    """What stands behind the guard: it notes what reaches it."""

    def __init__(self, policy: Policy, **options: Any) -> None:
        self.reached: list[str] = []
        routes = [
            Route("/page", self.page),
            Route("/{path:path}", self.anything, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
            WebSocketRoute("/graphql", self.socket),
        ]
        # `127.0.0.1:3000` is what a browser on this machine has in its address line.
        self.client = TestClient(Guard(Starlette(routes=routes), policy), base_url=f"http://{OWN}", **options)

    async def page(self, request: Request) -> HTMLResponse:
        headers = {"Content-Security-Policy": "script-src 'nonce-abc123' 'unsafe-inline' https:", "X-Own": "kept"}
        return HTMLResponse("<p>page</p>", headers=headers)

    async def anything(self, request: Request) -> PlainTextResponse:
        self.reached.append(f"{request.method} {request.url.path}")
        return PlainTextResponse("done")

    async def socket(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.reached.append("websocket")
        await websocket.close()


@pytest.fixture
def behind() -> Behind:
    return Behind(Policy(HOSTS, port=3000))


@pytest.fixture
def locked() -> Behind:
    return Behind(Policy(HOSTS, port=3000, token=TOKEN))


JSON = {"Content-Type": "application/json"}
CHANGES = [
    ("POST", "/graphql"),
    ("POST", "/report_asset_materialization/raw_pool"),
    ("POST", "/report_asset_check/raw_pool"),
    ("POST", "/report_asset_observation/raw_pool"),
    ("PUT", "/anything"),
    ("PATCH", "/anything"),
    ("DELETE", "/anything"),
]
FOREIGN: dict[str, Headers] = {
    "a different site": {"Origin": "http://evil.example"},
    "another port of this host": {"Origin": "http://127.0.0.1:9999", "Sec-Fetch-Site": "same-site"},
    "another name of this host": {"Origin": "http://localhost:3000"},
    "the default port of this host": {"Origin": "http://127.0.0.1"},
    "a sandboxed frame or a file": {"Origin": "null"},
    "an extension": {"Origin": "chrome-extension://abcdef"},
    "a longer name": {"Origin": "http://127.0.0.1:3000.evil.example"},
    "two origins": {"Origin": f"http://{OWN}, http://evil.example"},
    "a browser that says cross-site only": {"Sec-Fetch-Site": "cross-site"},
    "a browser that says same-site only": {"Sec-Fetch-Site": "same-site"},
    "an address that was typed in": {"Sec-Fetch-Site": "none"},
}


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("who", FOREIGN)
def test_nothing_is_changed_for_another_site(behind: Behind, method: str, path: str, who: str) -> None:
    answer = behind.client.request(method, path, headers={**JSON, **FOREIGN[who]}, content="{}")
    assert answer.status_code == 403
    assert "a different site" in answer.text
    assert behind.reached == []


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize(
    "headers", [{"Origin": f"http://{OWN}", "Sec-Fetch-Site": "same-origin"}, {}], ids=["own page", "script"]
)
def test_own_pages_and_scripts_change_things(behind: Behind, method: str, path: str, headers: Headers) -> None:
    assert behind.client.request(method, path, headers={**JSON, **headers}, content="{}").status_code == 200
    assert behind.reached == [f"{method} {path}"]


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_no_other_site_opens_a_websocket(behind: Behind, headers: Headers) -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        behind.client.websocket_connect("/graphql", headers={"Host": OWN, **headers}),
    ):
        pass
    assert behind.reached == []


@pytest.mark.parametrize("headers", [{"Origin": f"http://{OWN}"}, {}], ids=["own page", "script"])
def test_own_pages_and_scripts_open_websockets(behind: Behind, headers: Headers) -> None:
    with behind.client.websocket_connect("/graphql", headers={"Host": OWN, **headers}):
        pass
    assert behind.reached == ["websocket"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3000",
        "127.0.0.1.evil.example",
        "localhost.:3000",
        "127.0.0.1:3000@evil",
        "",
        "[::2]:3000",
        "0.0.0.0:3000",
        "127.0.0.1:",
        "127.0.0.1:3000 x",
        "127.0.0.2",
    ],
)
def test_a_foreign_name_that_leads_here_is_refused(behind: Behind, host: str) -> None:
    for method in ("GET", "POST"):
        answer = behind.client.request(method, "/anything", headers={"Host": host})
        assert answer.status_code == 421
        assert "ui.allowed_hosts" in answer.text
    with pytest.raises(WebSocketDisconnect), behind.client.websocket_connect("/graphql", headers={"Host": host}):
        pass
    assert behind.reached == []


@pytest.mark.parametrize("host", ["127.0.0.1:3000", "localhost:3000", "LOCALHOST:8080", "[::1]:3000", "127.0.0.1"])
def test_names_of_this_machine_are_answered_through_a_tunnel_too(behind: Behind, host: str) -> None:
    own = {"Host": host, "Origin": f"http://{host}"}
    assert behind.client.post("/anything", headers=own).status_code == 200


def test_two_host_headers_are_refused(behind: Behind) -> None:
    answer = behind.client.request("GET", "/anything", headers=[("Host", OWN), ("Host", "evil.example")])
    assert answer.status_code == 421


@pytest.mark.parametrize("path", ["/graphql", "/graphql/"])
@pytest.mark.parametrize(
    "query", ["mutation{wipeAssets}", "query Q{version} mutation M{wipeAssets}", "{version}", "subscription{x}"]
)
def test_graphql_is_not_run_by_get(behind: Behind, path: str, query: str) -> None:
    for headers in ({}, {"Accept": "image/*"}, {"Sec-Fetch-Site": "same-origin"}):
        answer = behind.client.get(path, params={"query": query, "operationName": "M"}, headers=headers)
        assert answer.status_code == 405
    assert behind.client.head(path, params={"query": query}).status_code == 405
    assert behind.reached == []


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain; application/json",
        "",
    ],
)
def test_graphql_is_not_run_by_what_a_form_can_send(behind: Behind, content_type: str) -> None:
    answer = behind.client.post(
        "/graphql?query=mutation{x}", headers={"Content-Type": content_type} if content_type else {}, content="{}"
    )
    assert answer.status_code == 415
    assert behind.reached == []


def test_the_graphiql_page_is_shown_to_those_who_open_it(behind: Behind) -> None:
    own = {"Accept": "text/html", "Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert behind.client.get("/graphql", headers=own).status_code == 200
    assert behind.client.get("/graphql", headers={**own, "Sec-Fetch-Site": "cross-site"}).status_code == 403


@pytest.mark.parametrize(
    ("mode", "destination", "code"),
    [
        ("navigate", "document", 200),
        ("navigate", "iframe", 403),
        ("navigate", "object", 403),
        ("no-cors", "image", 403),
        ("no-cors", "script", 403),
        ("cors", "empty", 403),
    ],
)
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_may_link_to_a_page_and_embed_nothing(
    behind: Behind, site: str, mode: str, destination: str, code: int
) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": destination}
    assert behind.client.get("/runs", headers=headers).status_code == code


def test_names_of_a_proxy_are_a_setting() -> None:
    settings = UiSettings(allowed_hosts=("icon.example.com", "other.example:8443"))
    behind = Behind(Policy(host_names(settings), frozenset(settings.allowed_hosts), 3000))
    for host, origin, code in [
        ("icon.example.com", "https://icon.example.com", 200),
        (OWN, "https://icon.example.com", 200),  # a proxy that sends its own address as Host
        (OWN, "https://other.example:8443", 200),
        (OWN, "https://icon.example.com:8443", 403),
        (OWN, "https://icon.example.com.evil.example", 403),
        ("evil.example.com", "https://evil.example.com", 421),
    ]:
        answer = behind.client.post("/anything", headers={"Host": host, "Origin": origin})
        assert answer.status_code == code, (host, origin)


@pytest.mark.parametrize(
    "name", ["*", "*.example.com", "https://icon.example.com", "icon.example.com/", "", "a b", "Icon.example"]
)
def test_a_name_of_a_proxy_is_exactly_one_name(name: str) -> None:
    with pytest.raises(ValidationError):
        UiSettings(allowed_hosts=(name,))


def test_every_answer_carries_the_security_headers_refusals_too(locked: Behind, behind: Behind) -> None:
    answers = [
        behind.client.get("/page"),
        behind.client.get("/anything"),
        behind.client.get("/graphql"),
        behind.client.get("/page", headers={"Host": "evil.example"}),
        locked.client.get("/page"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 405, 421, 401]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "img-src 'self' data:;" in policy
        assert "frame-ancestors 'none'" in policy
        assert "evil" not in policy
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_of_dagsters_own_policy_only_the_nonce_is_taken_over(behind: Behind) -> None:
    answer = behind.client.get("/page")
    policies = answer.headers.get_list("Content-Security-Policy")
    assert len(policies) == 1
    assert "script-src 'nonce-abc123' 'strict-dynamic';" in policies[0]
    assert "unsafe-eval" not in policies[0]
    assert answer.headers["X-Own"] == "kept"
    assert "script-src 'self';" in behind.client.get("/anything").headers["Content-Security-Policy"]


def test_the_scripts_of_dagsters_graphiql_page_are_named_by_their_hash() -> None:
    assert graphiql_scripts().startswith("'sha256-")
    behind = Behind(Policy(HOSTS, page_scripts={"/graphql": graphiql_scripts()}))
    policy = behind.client.get("/graphql", headers={"Accept": "text/html"}).headers["Content-Security-Policy"]
    assert f"script-src 'self' {graphiql_scripts()};" in policy


def test_without_the_token_nothing_is_answered(locked: Behind) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong-wrong-wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer "},
        {"Cookie": "icon_assets_ui_3000=wrong"},
        {"Cookie": f"icon_assets_ui_1={TOKEN}"},
    ):
        answer = locked.client.get("/anything", headers=headers)
        assert answer.status_code == 401
        assert TOKEN not in answer.text
        assert locked.client.post("/report_asset_materialization/x", headers=headers).status_code == 401
        with (
            pytest.raises(WebSocketDisconnect),
            locked.client.websocket_connect("/graphql", headers={"Host": OWN, **headers}),
        ):
            pass
    for query in ("?token=", "?token=wrong", f"?tokens={TOKEN}", f"?token={TOKEN}x"):
        assert locked.client.get(f"/anything{query}").status_code == 401
    assert locked.client.post(f"/anything?token={TOKEN}").status_code == 401, "an address is for pages"
    assert locked.reached == []


def test_a_script_sends_the_token_as_bearer(locked: Behind) -> None:
    given = {"Authorization": f"Bearer {TOKEN}"}
    assert locked.client.post("/graphql", headers={**JSON, **given}, content="{}").status_code == 200
    with locked.client.websocket_connect("/graphql", headers={"Host": OWN, **given}):
        pass
    assert locked.reached == ["POST /graphql", "websocket"]
    assert locked.client.post("/graphql", headers={**JSON, **given, "Origin": "http://evil.example"}).status_code == 403


def test_the_token_in_the_address_becomes_a_cookie_and_leaves_the_address(locked: Behind) -> None:
    entered = locked.client.get(f"/runs?a=1&token={TOKEN}&b=%3Cx%3E%22")
    assert entered.status_code == 200
    cookie = entered.headers["Set-Cookie"]
    assert cookie.startswith(f"icon_assets_ui_3000={TOKEN};")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert 'content="0;url=/runs?a=1&amp;b=%3Cx%3E%22"' in entered.text
    assert TOKEN not in entered.text
    assert entered.headers["Cache-Control"] == "no-store"
    assert locked.reached == [], "the page itself comes after"
    assert locked.client.get("/runs").status_code == 200
    assert locked.client.post("/anything").status_code == 200
    with locked.client.websocket_connect("/graphql", headers={"Host": OWN, "Cookie": f"icon_assets_ui_3000={TOKEN}"}):
        pass


@pytest.mark.parametrize("path", ["//evil.example/x", "/%2F/evil.example", "/\\evil.example", '/"><script>x</script>'])
def test_the_way_on_from_the_entrance_stays_on_this_server(locked: Behind, path: str) -> None:
    answer = locked.client.get(f"http://{OWN}{path}?token={TOKEN}")
    assert "url=//" not in answer.text
    assert "url=/\\" not in answer.text
    assert "<script>" not in answer.text


def test_the_cookie_is_for_https_only_where_the_page_came_so() -> None:
    behind = Behind(Policy(HOSTS, port=3000, token=TOKEN))
    assert "Secure" not in behind.client.get(f"/?token={TOKEN}").headers["Set-Cookie"]
    assert "Secure" in behind.client.get(f"https://{OWN}/?token={TOKEN}").headers["Set-Cookie"]


@pytest.mark.parametrize(
    ("host", "token", "asked"),
    [
        ("127.0.0.1", "auto", False),
        ("localhost", "auto", False),
        ("::1", "auto", False),
        ("0.0.0.0", "auto", True),
        ("192.0.2.7", "auto", True),
        ("myhost", "auto", True),
        ("127.0.0.1", "always", True),
        ("0.0.0.0", "never", False),
    ],
)
def test_a_token_is_asked_for_beyond_this_machine_unless_the_settings_say_otherwise(
    host: str, token: str, asked: bool
) -> None:
    settings = UiSettings(host=host, token=SecretStr(token))
    made = access_token(settings)
    assert (made is not None) == asked
    if made:
        assert len(made) >= 43
        assert made != access_token(settings), "another one at every start"


def test_a_token_of_the_settings_is_used_as_it_is_and_shown_nowhere(tmp_path: Path, capsys: Any) -> None:
    assert access_token(UiSettings(token=SecretStr("x" * 16))) == "x" * 16
    assert "x" * 16 not in repr(UiSettings(token=SecretStr("x" * 16)))
    for wrong in ("short-secret", "has spaces in it, many", "ümlaut-ümlaut-ümlaut"):
        (tmp_path / "settings.yaml").write_text(f"ui: {{token: '{wrong}'}}")
        with pytest.raises(IconError) as refused:
            Workspace.load(tmp_path)
        assert "ui.token: " in str(refused.value)
        assert wrong not in str(refused.value)


def test_bound_to_every_address_the_machine_is_known_by_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icon_assets.ui.guard.socket.gethostname", lambda: "MyHost")
    names = host_names(UiSettings(host="0.0.0.0"))
    assert {"myhost", "127.0.0.1", "localhost", "[::1]"} <= names
    assert "0.0.0.0" not in names
    assert host_names(UiSettings(host="192.0.2.7")) == {"127.0.0.1", "localhost", "[::1]", "192.0.2.7"}
