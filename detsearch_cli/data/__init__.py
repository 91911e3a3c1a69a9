"""Data sets: formats, checks, transforms, loading, and the embedded sets."""
