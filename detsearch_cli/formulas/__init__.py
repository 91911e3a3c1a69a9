"""Loss formulas as data: read, printed, evaluated by the ten thousand, filtered and simulated (numpy and scipy only).

Source: Liu et al. 2021, CSE-Autoloss, Sections 3.1 and 3.2. In the order of reading: `language` (what may be written),
`formula` (one formula), `reading` and `writing` (text, LaTeX, picture), `library` (known losses), `operators` and
`graph` (a whole population evaluated at once), `grids`, `properties` and `filters` (which formulas can be losses),
`simulation` (which of them learn), `drawing` (formulas at random).
"""
