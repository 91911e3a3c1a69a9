"""Where a detector predicts: anchors or points."""
