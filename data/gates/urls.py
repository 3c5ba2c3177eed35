"""URLs: their hosts, one form for all that name one page, and lists of what must go."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from data.errors import BadInput

HOST = re.compile(r"[\w-]+(\.[\w-]+)*|[0-9a-f:]+")
HASH = re.compile(r"(?i)[0-9a-f]{64}")
MAX_SHOWN = 80
TRACKING = ("utm_", "fbclid=", "gclid=", "mc_cid=", "mc_eid=")


def host(url: str) -> str:
    """The host of a URL in lower case and ASCII (RFC 3490), or ''."""
    try:
        name = (urlsplit(url).hostname or "").rstrip(".").lower()
        return name if name.isascii() else name.encode("idna").decode()
    except ValueError:  # brackets that hold no address, or a name that has no such form
        return ""


def plain(url: str) -> str:
    """One form of a URL for all that name one page.

    Without scheme, 'www.', fragment, trailing slash and the parameters that only track; host in
    lower case; '' for what is no URL.
    """
    try:
        parts = urlsplit(url.strip() if "://" in url else f"http://{url.strip()}")
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError:
        return ""
    if not host:
        return ""
    place = host if port in (None, 80, 443) else f"{host}:{port}"
    query = "&".join(
        pair for pair in parts.query.split("&") if pair and not pair.lower().startswith(TRACKING)
    )
    return place + parts.path.rstrip("/") + (f"?{query}" if query else "")


def read_hosts(path: str, key: str) -> set[str]:
    """Reads a list of hosts to block: one a line, as host, *.host, .host or URL without a page.

    Args:
        path: a text file; '' for none. Blank lines and those that begin with '#' say nothing.
        key: of the configuration, for messages.

    Returns:
        The hosts, in lower case.

    Raises:
        BadInput: a file that cannot be read, or a line that is none of these.
    """
    hosts = set()
    for place, line in _lines(path, key):
        bare = line.removeprefix("*").removeprefix(".")
        url = bare if "://" in bare else f"//{bare}"
        name = host(url)
        is_whole = "." in name or ":" in name or bare != line  # "org" is more than one may mean
        if not HOST.fullmatch(name) or not is_whole or url.rstrip("/").count("/") > 2:
            raise BadInput(
                f"{place}: {line[:MAX_SHOWN]!r} is no host, such as example.org or *.org"
            )
        hosts.add(name)
    return hosts


def read_opt_outs(path: str, key: str) -> set[str]:
    """Reads a list of what has opted out: a URL or the SHA-256 of a text a line.

    Args:
        path: a text file; '' for none. Blank lines and those that begin with '#' say nothing.
        key: of the configuration, for messages.

    Returns:
        URLs as `plain` gives them, and hashes in lower case.

    Raises:
        BadInput: a file that cannot be read, or a line that is neither.
    """
    found = set()
    for place, line in _lines(path, key):
        url = plain(line)
        name = host(f"//{url}")
        if not is_hash(line) and not (HOST.fullmatch(name) and "." in name):
            raise BadInput(
                f"{place}: {line[:MAX_SHOWN]!r} is neither a URL nor 64 hexadecimal digits"
            )
        found.add(line.lower() if is_hash(line) else url)
    return found


def is_hash(line: str) -> bool:
    """Whether a line is a SHA-256."""
    return HASH.fullmatch(line) is not None


def _lines(path: str, key: str) -> Iterator[tuple[str, str]]:
    """Lines that say something, each with where it stands."""
    if not path:
        return
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{key}: {path}: {error}; a text file is needed") from error
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            yield f"{key}: {path}: line {number}", line.strip()
