"""The one exception that means: the caller asked for something that cannot be done."""


class UserError(Exception):
    """A mistake of the caller. The message is one line: what is wrong and how to mend it."""
