"""The error that a user sees as one line."""


class UserError(Exception):
    """Something the user can mend: its text names the place and the remedy on one line. The command line prints it and
    exits with 1; a traceback is for our own mistakes only."""
