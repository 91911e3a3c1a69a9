"""`python -m detsearch_cli.engine.rank`: a rank other than 0 of a training, told on stdin what to train."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from detsearch_cli.engine.interrupt import SIGNALS
from detsearch_cli.errors import DetsearchError, unforeseen

POLL_SECONDS = 0.5


def main() -> None:
    """Train as ordered. What stops it becomes one line of JSON on stdout, for rank 0 to raise."""
    # Ctrl-C and a cluster's SIGTERM go to every process; rank 0 decides what they mean for the training
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # rank 0 started this process with both blocked, for they could not be ignored from its first moment otherwise
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    order = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=(order["parent"],), daemon=True).start()
    sys.exit(_run(order))


def _run(order: dict[str, Any]) -> int:
    try:
        _train(order)
    except KeyboardInterrupt:  # agreed on with rank 0, which has saved
        return 130
    except DetsearchError as error:
        return _tell(type(error).__name__, error, error.exit_code)
    except Exception as error:
        return _explain(error)
    return 0


def _train(order: dict[str, Any]) -> None:
    import yaml

    from detsearch_cli.engine.processes import Place
    from detsearch_cli.engine.train import train
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.recipe import validate

    recipe = validate(yaml.safe_load(order["recipe"]))
    data = load_data(recipe.data)
    folder, place = Path(order["folder"]), Place(**order["place"])
    train(recipe, data.train, data.val, folder, until=order["until"], place=place)


def _explain(error: Exception) -> int:
    if isinstance(error, ImportError):  # rank 0 has loaded the same, so this process alone lacks something
        return _tell("ProcessLost", f"a process of the training could not load its libraries: {error}", 1)

    from detsearch_cli.engine.processes import OUT_OF_MEMORY, is_lost_peer, is_out_of_memory

    if is_lost_peer(error):
        return 1
    if is_out_of_memory(error):
        return _tell(OUT_OF_MEMORY, error, 1)
    own = unforeseen(error)
    return _tell(type(own).__name__, own, own.exit_code, traceback.format_exc())


def _tell(kind: str, said: object, code: int, trace: str = "") -> int:
    print(json.dumps({"kind": kind, "text": str(said), "trace": trace}), flush=True)
    return code


def _end_with(parent: int) -> None:
    """End this process when rank 0 is gone: it could not save anything any more."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)  # not sys.exit, which would end this thread alone


if __name__ == "__main__":
    main()
