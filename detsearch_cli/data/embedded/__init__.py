"""Data sets that need no files: every image is rendered from (seed, split, index)."""
