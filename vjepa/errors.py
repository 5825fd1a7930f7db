"""The one error that a user is meant to read."""


class UserError(ValueError):
    """Bad input. The message is one line that names the file, key or value and the remedy; commands print it and exit
    with 2.
    """
