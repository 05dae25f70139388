"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in what the user gave (config, files, resources).

    The message names the field or file, what was found and what would be right.
    Entry points print it without a traceback and exit with status 2.
    """
