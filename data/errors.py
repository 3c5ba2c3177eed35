"""The one exception that means: what the user gave cannot be used as it stands."""


class BadInput(ValueError):
    """Input or configuration that the user can fix: one line on standard error, exit code 2.

    The message names the thing (file, line or key), the value, and what is allowed.
    """
