"""The one exception that means: what the user gave cannot be used as it stands."""


class BadInput(ValueError):
    """Input or configuration the user can mend; the door prints it alone and exits with 2.

    The message names the thing (file, line or key), the value, and what is allowed.
    """
