"""Searching: spaces, samplers that propose candidates, the ledger that remembers them, workers that train."""
