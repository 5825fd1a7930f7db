"""The one error that a user is meant to read."""


class UserError(ValueError):
    """Tell of bad input in one line: the file, key or value, and the remedy. Commands print it and exit with 2."""
