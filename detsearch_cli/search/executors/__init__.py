"""Executors: where workers run; one file each, `--executor NAME` is `executors/NAME.py`."""
