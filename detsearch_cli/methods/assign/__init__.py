"""HPS-Det: search how many positive samples each ground truth gets, by pyramid level and aspect ratio.

Read it in the paper's order: space.py (section 3.1, Table 5), slots/assigners/dynamic.py (Algorithm 2, the
thing searched), method.py (a candidate becomes a recipe), inspect.py and figures.py (what the outcome does).
"""
