"""The one exception that means: the user can mend this; and the tail of its message on an unknown name."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in what the user gave (config, files, resources).

    The message names the field or file, what was found and what would be right.
    Entry points print it without a traceback and exit with status 2.
    """


def did_you_mean(name: str, known: Sequence[str], n: int = 1, otherwise: str = "") -> str:
    """The up to n known names that are nearest to an unknown one; where none is near, `otherwise`, or all.

    A key of a file (n = 1) is quoted; names of a command line are not.
    """
    import difflib

    if near := difflib.get_close_matches(name, known, n=n):
        return f"did you mean {near[0]!r}?" if n == 1 else f"did you mean {' or '.join(near)}?"
    return otherwise or f"{'known:' if n == 1 else 'there are'} {', '.join(known)}"
