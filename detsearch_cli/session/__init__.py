"""What a person runs, without the person: a search, the trainings that test its finding, the report pages.

It knows neither typer nor rich; api.py and cli/ stand on it.
"""
