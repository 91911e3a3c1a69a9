"""detsearch finds a better training recipe for an object detector, and tests whether it is better."""

__version__ = "0.1.0"
