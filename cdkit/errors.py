"""The one exception that means: the user can mend this."""


class CdkitError(ValueError):
    """Bad input: the message says what was given, what is allowed and what to do.

    The command line prints it without a traceback and exits with 1. Any other exception is a bug.
    """
