"""What starts a training on many hosts, one file for each engine."""
