"""The shared training engine: train, evaluate, checkpoint, compare."""
