"""The one error that a user is meant to see."""


class UserError(Exception):
    """Something the user can mend.

    The message says what is wrong, where (stage, file, key) and what to do. The command line prints it alone.
    """
