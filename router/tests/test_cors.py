"""Which pages of other origins may call from a browser, and what a browser is told of it."""

import pytest
from scripted import Caller, Script, ScriptedCatalog, ScriptedDispatcher, chat

from pagoda_router.errors import ConfigError
from pagoda_router.http.app import create_app
from pagoda_router.http.cors import parse_origins
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.keyring import Keyring

ORIGIN = "https://chat.example.org"
ASKS = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type,x-stainless-lang"}
KEY = {"authorization": "Bearer secret"}


def surface(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, origins: tuple[str, ...]) -> Caller:
    keyring = Keyring("secret", None, calendar=lambda: 0.0)
    return Caller(create_app(dispatcher=dispatcher, catalog=catalog, keyring=keyring, settings=SurfaceSettings(cors_origins=origins)))


@pytest.fixture
def open_to_one(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog) -> Caller:
    return surface(dispatcher, catalog, (ORIGIN,))


def told(call: Caller) -> dict[str, str]:
    return {name: value for name, value in call.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/models", "/tokenize"])
async def test_a_preflight_needs_no_key_and_allows_what_the_browser_asks_for(open_to_one: Caller, path: str) -> None:
    await open_to_one("OPTIONS", path, headers={"origin": ORIGIN, **ASKS})
    assert (open_to_one.status, open_to_one.body) == (204, b"")
    assert told(open_to_one) == {
        "access-control-allow-origin": ORIGIN,
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": ASKS["access-control-request-headers"],
        "access-control-max-age": "600",
    }
    assert open_to_one.headers["vary"] == "origin"


NOT_ALLOWED = [
    ("/v1/models", {"origin": "https://evil.example", **ASKS}, 401),
    ("/v1/models", {"origin": ORIGIN}, 401),  # no question
    ("/admin/v1/keys", {"origin": ORIGIN, **ASKS}, 401),
    ("/metrics", {"origin": ORIGIN, **ASKS}, 404),
    ("/", {"origin": ORIGIN, **ASKS}, 405),
]


@pytest.mark.parametrize(("path", "headers", "status"), NOT_ALLOWED)
async def test_other_origins_and_other_paths_get_no_permission(
    open_to_one: Caller, path: str, headers: dict[str, str], status: int
) -> None:
    await open_to_one("OPTIONS", path, headers=headers)
    assert open_to_one.status == status
    assert "access-control-allow-methods" not in told(open_to_one)


async def test_answers_errors_and_streams_can_be_read_with_what_clients_look_at(
    dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog
) -> None:
    dispatcher.script = Script(batches=[[5]])
    calls = [
        ("GET", "/v1/models", b"", KEY, 200),
        ("GET", "/v1/models", b"", {}, 401),
        ("POST", "/v1/chat/completions", chat(stream=True), KEY, 200),
        ("POST", "/v1/chat/completions", chat(), KEY, 200),
        ("POST", "/v1/chat/completions", chat(temperature=9), KEY, 400),
        ("POST", "/tokenize", {"prompt": "a", "model": "tiny"}, KEY, 200),
    ]
    for method, path, body, headers, status in calls:
        call = await surface(dispatcher, catalog, (ORIGIN,))(method, path, body, {**headers, "origin": ORIGIN})
        assert call.status == status
        assert call.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in call.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in call.headers


async def test_everyone_is_allowed_without_credentials(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog) -> None:
    call = await surface(dispatcher, catalog, ("*",))("GET", "/v1/models", headers={**KEY, "origin": "https://any.example"})
    assert call.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in call.headers


@pytest.mark.parametrize("origins", [(), (ORIGIN,)])
async def test_a_stranger_and_a_router_without_the_setting_see_no_header(
    dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, origins: tuple[str, ...]
) -> None:
    call = await surface(dispatcher, catalog, origins)("GET", "/v1/models", headers={**KEY, "origin": "https://evil.example"})
    assert call.status == 200
    assert told(call) == {}


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("*", ("*",)),
        (" https://A.example/ , http://b.example:8080,https://a.example", ("https://a.example", "http://b.example:8080")),
    ],
)
def test_origins_are_read_as_browsers_write_them(text: str, origins: tuple[str, ...]) -> None:
    assert parse_origins(text) == origins


@pytest.mark.parametrize(
    "text", ["chat.example", "https://a.example/path", "ftp://a", "*,https://a.example", "https://u@a.example", "null"]
)
def test_what_no_browser_sends_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="PAGODA_CORS_ORIGINS"):
        parse_origins(text)
