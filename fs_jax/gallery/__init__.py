"""What is stored of a gallery."""
