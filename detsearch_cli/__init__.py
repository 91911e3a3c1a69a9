"""detsearch finds a better training recipe for an object detector, and proves that it is better."""

__version__ = "0.1.0"
