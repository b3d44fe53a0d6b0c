"""What is minimised, and how."""
