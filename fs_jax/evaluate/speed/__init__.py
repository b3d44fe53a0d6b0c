"""How fast the parts run, beside others."""
