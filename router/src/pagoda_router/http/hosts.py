"""Which Host headers no web page can have: the guard of a router without keys against DNS rebinding. Pure; app.py calls it."""

import ipaddress


def is_local_name(host: bytes | None) -> bool:
    """Of a Host header, with or without a port; an absent one (HTTP/1.0) cannot come from a web page."""
    if host is None:
        return True
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
