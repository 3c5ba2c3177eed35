"""URLs: their hosts, and one form for all that name one page."""

from urllib.parse import urlsplit

TRACKING = ("utm_", "fbclid=", "gclid=", "mc_cid=", "mc_eid=")


def host(url: str) -> str:
    """The host of a URL in lower case, or ''."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:  # brackets that hold no address
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
