"""A whole cluster's real machines on one core: what an entity costs the head, and whether growth is linear.

`python -m tests.scale` (or `make scale`) prints the table of docs/scale.md.
"""
