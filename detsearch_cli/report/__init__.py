"""Figures and the self-contained HTML page of a study or a run, from plain data."""
