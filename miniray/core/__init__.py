"""State machines of the cluster: pure decisions, no I/O. Start with `contract`."""
