"""Samplers: one file each, found by file name; `--sampler NAME` is `samplers/NAME.py`."""
