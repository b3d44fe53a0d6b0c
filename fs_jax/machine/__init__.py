"""Disks, devices, processes and pods; nothing here knows of retrieval."""
