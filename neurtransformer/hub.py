"""Whether the Hugging Face hub can be reached, said quickly.

The hub's own libraries retry for half a minute before they say that there is no network.
"""

import os
import re
import threading
import urllib.error
import urllib.request


def endpoint() -> str:
    """The address of the hub (the variable HF_ENDPOINT, as for the hub's own libraries)."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def may_be_id(name: str) -> bool:
    """Whether the hub could have a repository of this name, `name` or `owner/name`.

    Its own libraries raise an error of theirs for a name that it cannot have, such as most paths.
    """
    part = r"[A-Za-z0-9_]([\w.-]{0,94}\w)?"
    if not re.fullmatch(rf"{part}(/{part})?", name, re.ASCII):
        return False
    return "--" not in name and ".." not in name and not name.endswith(".git")


def reachable(seconds: float = 3.0) -> bool:
    """Whether the hub answers within `seconds`; False at once where HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(endpoint(), method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError as error:
            # a mirror need not have a front page; other errors are those of a proxy in between
            if error.code not in (401, 404, 405):
                return
        except (OSError, ValueError):
            return
        answered.set()

    # in a thread, because looking up the name of the host obeys no time limit
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()
