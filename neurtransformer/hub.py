"""The Hugging Face hub: whether it can be reached, said quickly, and repositories fetched from it.

The hub's own libraries retry for half a minute before they say that there is no network.
"""

import logging
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from neurtransformer.errors import UserError, shortened

FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "*.model"]
"""What is fetched of a repository, at most: no pickle, no code."""

log = logging.getLogger(__name__)


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


def cached(repository: str) -> Path | None:
    """The folder of `repository` in the hub's local cache, if its config.json is there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def is_cached(folder: Path) -> bool:
    """Whether `folder` is a snapshot in the hub's local cache, which nobody else should write to:
    .../models--owner--name/snapshots/REVISION."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


def fetch(repository: str, check: Callable[[Path], object]) -> Path:
    """The folder of `repository`, fetched into the local cache. check: called with the path of its
    config.json before the rest is fetched; gigabytes need not be fetched to be refused.

    Raises UserError if there is no such repository or it does not come, and what `check` raises.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
    )

    try:
        check(Path(hf_hub_download(repository, "config.json")))
        log.info("fetching %s from %s", repository, endpoint())
        return Path(snapshot_download(repository, allow_patterns=FILES, ignore_patterns=["*/*"]))
    except GatedRepoError:
        raise UserError(f"'{repository}' wants a login: type `hf auth login` first") from None
    except RepositoryNotFoundError:
        raise NoRepository(f"there is no model '{repository}' on {endpoint()}") from None
    except EntryNotFoundError:
        raise UserError(
            f"'{repository}' has no config.json: it is no language model (merge an adapter first)"
        ) from None
    except (HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise UserError(f"could not fetch '{repository}': {shortened(error)}; try again") from error


class NoRepository(UserError):
    """The hub has no repository of that name, or does not show it to this caller."""
