from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.render.tokens import plain_name, secret_name, token

KEYS = st.binary(min_size=16, max_size=64)
NAMESPACES = st.from_regex("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


def test_a_token_is_the_same_for_every_operator_with_the_key() -> None:
    """Written down: a change of this sum would replace every pod of every installation."""
    key = b"0123456789abcdef"
    assert token(key, "session", "default") == "b3328330b6e3b77f9233c0d3811c3c5603ffe858bcce781fc4b2815624a7298a"
    assert secret_name("session", token(key, "session", "default")) == "pagoda-session-0db3b6f6"


@given(KEYS, KEYS, NAMESPACES, NAMESPACES)
def test_keys_purposes_and_namespaces_share_no_token(one: bytes, other: bytes, here: str, there: str) -> None:
    asked = {(key, purpose, namespace) for key in (one, other) for purpose in ("session", "internal") for namespace in (here, there)}
    assert len({token(key, purpose, namespace) for key, purpose, namespace in asked}) == len(asked)


@given(KEYS, NAMESPACES)
def test_a_secrets_name_tells_its_purpose_and_not_its_token(key: bytes, namespace: str) -> None:
    made = token(key, "internal", namespace)
    name = secret_name("internal", made)
    assert name.startswith(f"{plain_name('internal')}-")
    assert name.rpartition("-")[2] not in made
