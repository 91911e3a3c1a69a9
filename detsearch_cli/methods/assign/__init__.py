"""Search how many positives each ground truth gets (HPS-Det).

Read it in the paper's order: options.py and space.py (section 3.1, Table 5), slots/assigners/dynamic.py (Algorithm 2,
the assignment that is searched), method.py (a candidate becomes a fragment), inspect.py and figures.py (its effect).
"""
