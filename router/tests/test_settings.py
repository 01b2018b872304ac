"""The router's environment: defaults, bounds, and one line for everything that is wrong."""

import pytest

from pagoda_router.errors import ConfigError
from pagoda_router.settings import RouterSettings, parse_settings

LEAST = {"PAGODA_FLEET_FILE": "/run/fleet.json", "PAGODA_CACHE_DIR": "/run/cache"}


def test_two_paths_are_all_that_must_be_set():
    settings = parse_settings({**LEAST, "HOME": "/root", "PATH": "/bin"})
    assert settings == RouterSettings(fleet_file=settings.fleet_file, cache_dir=settings.cache_dir)
    assert (settings.bind_host, settings.http_port, settings.internal_port) == ("127.0.0.1", 8000, 8001)
    assert (settings.max_body_bytes, settings.max_queue_tokens, settings.queue_timeout_s, settings.drain_s) == (10 * 2**20, 200_000, 60, 30)
    assert settings.is_loopback
    assert settings.key_database == str(settings.cache_dir / "router.sqlite3")


def test_everything_can_be_set():
    settings = parse_settings(
        {
            **LEAST, "PAGODA_BIND_HOST": "0.0.0.0", "PAGODA_HTTP_PORT": "80", "PAGODA_INTERNAL_PORT": "81", "PAGODA_INTERNAL_TOKEN": "i",
            "PAGODA_SESSION_TOKEN": "s", "PAGODA_API_KEY": "k", "PAGODA_MAX_BODY_BYTES": "4096", "PAGODA_MAX_QUEUE_TOKENS": "5",
            "PAGODA_QUEUE_TIMEOUT_S": "1.5", "PAGODA_DRAIN_S": "0", "PAGODA_LOG_LEVEL": "debug", "PAGODA_POD_NAME": "router-1",
            "PAGODA_TRACE_RING": "7", "PAGODA_OTLP_ENDPOINT": "https://collector:4318",
            "PAGODA_OTLP_HEADERS": "Authorization=Bearer a=b, x-tenant=blue",
            "PAGODA_DATABASE": "postgresql://u:secret@h/d", "PAGODA_REDIS": "redis://:secret@h/0",
            "PAGODA_HOME": "/h", "PAGODA_RUN_ID": "r", "PAGODA_REQUIRE_ALL": "1", "PAGODA_KUBE_BIN": "/k",
        }
    )  # fmt: skip
    assert (settings.api_key, settings.session_token, settings.internal_token) == ("k", "s", "i")
    assert (settings.queue_timeout_s, settings.drain_s, settings.log_level, settings.pod_name) == (1.5, 0, "DEBUG", "router-1")
    assert settings.otlp_headers == (("authorization", "Bearer a=b"), ("x-tenant", "blue"))
    assert "Bearer" not in repr(settings)
    assert not settings.reuse_port
    assert (settings.trace_ring, settings.otlp_endpoint) == (7, "https://collector:4318")
    assert (settings.key_database, settings.redis) == ("postgresql://u:secret@h/d", "redis://:secret@h/0")
    assert "secret" not in repr(settings)
    assert not settings.is_loopback


def test_a_cluster_needs_a_namespace_instead_of_a_file():
    settings = parse_settings({"PAGODA_DISCOVERY": "kubernetes", "PAGODA_NAMESPACE": "team-a", "PAGODA_CACHE_DIR": "/run/cache"})
    assert (settings.discovery, settings.namespace, settings.fleet_file) == ("kubernetes", "team-a", None)
    assert settings.key_database is None


BAD = [
    ({"PAGODA_OTLP_ENDPOINT": "collector:4318"}, "PAGODA_OTLP_ENDPOINT='collector:4318' is not a URL such as http://collector:4318"),
    ({"PAGODA_OTLP_ENDPOINT": "http://c:99999"}, "is not a URL such as http://collector:4318"),
    ({"PAGODA_OTLP_HEADERS": "authorization"}, "PAGODA_OTLP_HEADERS is not of the form name=value,name=value"),
    ({"PAGODA_DATABASE": "mysql://h/d"}, "PAGODA_DATABASE is a URL of something else: write postgresql://"),
    ({"PAGODA_REDIS": "h:6379"}, "PAGODA_REDIS is not a URL such as redis://"),
    ({"PAGODA_TRACE_RING": "-1"}, "PAGODA_TRACE_RING=-1 is out of range: 0 to 1000000"),
    ({"PAGODA_FLEET_FILE": ""}, "PAGODA_FLEET_FILE is not set"),
    ({"PAGODA_DISCOVERY": "dns"}, "PAGODA_DISCOVERY='dns' is not one of file, kubernetes"),
    ({"PAGODA_DISCOVERY": "kubernetes"}, "PAGODA_NAMESPACE is not set: the namespace whose models this router serves"),
    ({"PAGODA_CACHE_DIR": ""}, "PAGODA_CACHE_DIR is not set"),
    ({"PAGODA_HTTPPORT": "1"}, "no setting PAGODA_HTTPPORT: did you mean PAGODA_HTTP_PORT?"),
    ({"PAGODA_GRPC_PORT": "1"}, "no setting PAGODA_GRPC_PORT: did you mean PAGODA_HTTP_PORT?"),
    ({"PAGODA_ZZZ": "1"}, "known are PAGODA_API_KEY"),
    ({"PAGODA_HTTP_PORT": "http"}, "PAGODA_HTTP_PORT='http' is not a whole number"),
    ({"PAGODA_HTTP_PORT": "70000"}, "PAGODA_HTTP_PORT=70000 is out of range: 0 to 65535"),
    ({"PAGODA_HTTP_PORT": "8001"}, "both 8001"),
    ({"PAGODA_MAX_BODY_BYTES": "-1"}, "out of range"),
    ({"PAGODA_QUEUE_TIMEOUT_S": "soon"}, "PAGODA_QUEUE_TIMEOUT_S='soon' is not a number of seconds"),
    ({"PAGODA_DRAIN_S": "nan"}, "out of range"),
    ({"PAGODA_LOG_LEVEL": "loud"}, "not one of DEBUG, INFO, WARNING, ERROR"),
    ({"PAGODA_BIND_HOST": "0.0.0.0"}, "set PAGODA_API_KEY"),
    ({"PAGODA_BIND_HOST": "::"}, "set PAGODA_API_KEY"),
    ({"PAGODA_BIND_HOST": "router.local"}, "set PAGODA_API_KEY"),
]


@pytest.mark.parametrize(("environment", "message"), BAD, ids=str)
def test_a_bad_setting_is_one_line_that_names_it(environment, message):
    with pytest.raises(ConfigError) as raised:
        parse_settings({**LEAST, **environment})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", ""])
def test_loopback_needs_no_key(host):
    assert parse_settings({**LEAST, "PAGODA_BIND_HOST": host}).is_loopback
