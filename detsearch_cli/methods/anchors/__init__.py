"""Anchor shapes: fitted to the boxes, learned while the detector trains (anchor box optimization).

Read it in the paper's order: slots/priors/learned.py and detectors/_learning.py (section 3.2, what learns), options.py
and starts.py (the initialisations of section 4.2.1), fit.py (the k-means that the paper starts from), online.py
(section 3.2.2 on its own), method.py (learned and fixed shapes become recipes), formats.py (what other frameworks
read), inspect.py, tables.py and figures.py (Figures 2, 3).
"""
