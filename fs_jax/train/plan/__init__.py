"""Whether a stage fits a machine, and how long it would take there."""
