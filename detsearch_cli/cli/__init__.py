"""The command line: options in, calls down, tables out. Nothing else in detsearch knows typer and rich."""
