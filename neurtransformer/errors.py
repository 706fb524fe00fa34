"""The one exception that means: the caller asked for something that cannot be done."""

NOT_ON_WINDOWS = "neurtx runs on Linux and macOS; on Windows, install it in WSL"


class UserError(Exception):
    """A mistake of the caller. The message is one line: what is wrong and how to mend it."""


def shortened(error: object, most: int = 300) -> str:
    """What `error` says, which may quote a damaged file, in one short line of printable text."""
    line = " ".join(str(error).split())
    line = "".join(sign if sign.isprintable() else "?" for sign in line)
    return line if len(line) <= most else f"{line[:most]}..."
