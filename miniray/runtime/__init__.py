"""Shells: the I/O around the machines of `core`."""
