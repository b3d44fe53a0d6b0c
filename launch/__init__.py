"""Programs: each turns argv into one call. `python -m launch.<name> --help`."""
