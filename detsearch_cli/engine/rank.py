"""`python -m detsearch_cli.engine.rank`: a rank other than 0 of a training, told on stdin what to train."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.5


def main() -> None:
    """Train as ordered. A user's error becomes one line of JSON on stdout, for rank 0 to raise."""
    # Ctrl-C goes to every process of the terminal; rank 0 decides what it means for the training
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=(order["parent"],), daemon=True).start()
    sys.exit(_train(order))


def _train(order: dict[str, Any]) -> int:
    import yaml

    from detsearch_cli.engine.processes import OUT_OF_MEMORY, Place, is_lost_peer, is_out_of_memory
    from detsearch_cli.engine.train import train
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.errors import DetsearchError
    from detsearch_cli.recipe import validate

    recipe = validate(yaml.safe_load(order["recipe"]))
    try:
        data = load_data(recipe.data)
        folder, place = Path(order["folder"]), Place(**order["place"])
        train(recipe, data.train, data.val, folder, until=order["until"], place=place)
    except KeyboardInterrupt:  # agreed on with rank 0, which has saved
        return 130
    except DetsearchError as error:
        return _tell(type(error).__name__, error, error.exit_code)
    except Exception as error:
        if is_lost_peer(error):
            return 1
        if is_out_of_memory(error):
            return _tell(OUT_OF_MEMORY, error, 1)
        raise
    return 0


def _tell(kind: str, error: Exception, code: int) -> int:
    print(json.dumps({"kind": kind, "text": str(error)}), flush=True)
    return code


def _end_with(parent: int) -> None:
    """End this process when rank 0 is gone: it could not save anything any more."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)  # not sys.exit, which would end this thread alone


if __name__ == "__main__":
    main()
