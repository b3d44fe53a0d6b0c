"""Programs: argv to one call each. `python -m launch.<name> --help`."""
