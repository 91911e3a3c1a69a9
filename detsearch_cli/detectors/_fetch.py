"""Published weights as files: from the caches of torch and Hugging Face, or the network, never waiting long for it."""

from __future__ import annotations

import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import torch

from detsearch_cli.errors import CheckpointError

PATIENCE = 5.0
"""Seconds to wait for a server to answer at all; without a network its libraries try for half a minute."""


def fetch_url(url: str, what: str, otherwise: str) -> Path:
    """The file of this address in torch's hub cache, downloaded and checked by the hash in its name if it is not there.

    what: what it is for, in the words of the user's option; otherwise: the option that takes it as a file. Raises
    CheckpointError where it cannot be had.
    """
    import re

    name = Path(urlparse(url).path).name
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if cached.is_file():
        return cached
    remedy = f"download {url} elsewhere, then give it as {otherwise}, or put it at {cached}"
    host = urlparse(url).hostname or ""
    if not reachable(host):
        raise CheckpointError(f"{what} needs {name}, and {host} cannot be reached from here; {remedy}")
    digits = re.search(r"-([0-9a-f]{8,})\.", name)
    before = socket.getdefaulttimeout()
    # torch's download sets no limit of its own, so a connection that stalls would hang
    socket.setdefaulttimeout(PATIENCE)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(cached), digits and digits[1])
    except (OSError, RuntimeError) as error:  # RuntimeError: not the hash that the name promises
        raise CheckpointError(f"{what} needs {name}, which cannot be fetched ({error}); {remedy}") from error
    finally:
        socket.setdefaulttimeout(before)
    return cached


def fetch_hub(
    repository: str, names: tuple[str, ...], revision: str | None, what: str, otherwise: str
) -> Path:
    """The first of these files that a Hugging Face repository has, from its cache or the network.

    what, otherwise: as above. Raises CheckpointError where it cannot be had.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        cached = hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    page = f"https://huggingface.co/{repository}"
    remedy = f"download {names[0]} from {page} elsewhere and give it as {otherwise}"
    host = urlparse(constants.ENDPOINT).hostname or ""
    if constants.HF_HUB_OFFLINE or not reachable(host):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{host} cannot be reached from here"
        raise CheckpointError(f"{what} needs {names[0]} of {page}, and {why}; {remedy}")
    for name in names:
        try:
            return Path(hub.hf_hub_download(repository, name, revision=revision, etag_timeout=PATIENCE))
        except EntryNotFoundError:
            continue
        except Exception as error:  # a dozen kinds, of the library and of what it sends requests with
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise CheckpointError(
                f"{what} needs {name} of {page}, which cannot be fetched ({reason}); {remedy}"
            ) from error
    raise CheckpointError(f"{what}: {page} holds none of {', '.join(names)}; give weights as {otherwise}")


def reachable(host: str) -> bool:
    """Whether a connection to the host's port 443 comes about in time. Behind a proxy nobody can tell, so yes."""
    if "https" in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return True
    connected = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection((host, 443), timeout=PATIENCE):
                connected.set()
        except OSError:
            pass

    # in a thread of its own: a name server that does not answer keeps its caller for half a minute
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return connected.is_set()
