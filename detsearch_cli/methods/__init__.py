"""The papers' searches, one package each: the space, how a candidate becomes a recipe, the figures."""
