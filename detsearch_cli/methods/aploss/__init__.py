"""Search the shape of a differentiable average precision (Searching Parameterized AP Loss).

Read it in the paper's order: slots/losses/parameterized_ap.py (section 3.2, Eq. 6, the loss that is searched), options.py
and space.py (Eq. 7 and 8, and the gradient scale), search/samplers/ppo2.py (section 3.3, Eq. 10 and 11), method.py (a
candidate becomes a fragment), figures.py (Figure 4).
"""
