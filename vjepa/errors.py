"""The one error that a user is meant to read."""


class UserError(ValueError):
    """Tell of bad input in one line: the file, key or value, and the remedy. Commands print it and exit with 2."""


class NotFinite(UserError):
    """Tell that a loss or a weight is not finite any more: the run went too fast."""
