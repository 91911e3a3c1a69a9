"""File formats of data sets: one file each with `detect`, `splits` and `load`."""
