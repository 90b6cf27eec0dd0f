"""What a request asks for: a path, or a whole URL, as clients ask a proxy (RFC 9112, 3.2.2).

Of a URL the host stands in the headers afterwards, in place of what was there, and the path is all
that is left. So whatever decides on a host or a path sees what it would see of any other request.
"""

import re
from collections.abc import Iterable

Header = tuple[bytes, bytes]

_URL = re.compile(rb"https?://([^/?#@]+)((?:[/?].*)?)", re.ASCII | re.IGNORECASE | re.DOTALL)


def reduced(target: bytes, headers: Iterable[Header]) -> tuple[bytes, list[Header]] | None:
    """The target as a path, and the headers, whose names are in lower case.

    None where it is neither a path, nor a URL of HTTP, nor ``*``; and for a URL that names a user.
    """
    if target.startswith(b"/") or target == b"*":
        return target, [*headers]
    match = _URL.fullmatch(target)
    if match is None:
        return None
    authority, rest = match.groups()
    others = [(name, value) for name, value in headers if name != b"host"]
    return (b"" if rest.startswith(b"/") else b"/") + rest, [(b"host", authority), *others]
