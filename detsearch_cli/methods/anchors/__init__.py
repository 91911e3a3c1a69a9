"""Anchor box optimization: shapes fitted to boxes, and shapes that learn while the detector trains.

Read it in the paper's order: slots/priors/learned.py and detectors/_learning.py (section 3.2, what learns),
fit.py (the k-means that the paper starts from), online.py (section 3.2.2 on its own), starts.py (the
initialisations of section 4.2.1), formats.py (what other frameworks read), inspect.py and figures.py (Figures 2, 3).
"""
