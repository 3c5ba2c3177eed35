"""The one exception that means: what the user gave cannot be used as it stands."""


class BadInput(ValueError):
    """Input or configuration that the user can fix: one line on standard error, exit code 2.

    The message names the thing (file, line or key), the value, and what is allowed.
    """


def printable(text: str, max_chars: int = 400) -> str:
    """A stranger's text for a message: control characters escaped, cut where it is long."""
    shown = (char if char.isprintable() else ascii(char)[1:-1] for char in text[:max_chars])
    return "".join(shown) + ("..." if len(text) > max_chars else "")
