"""A whole cluster in one thread: the real machines of `miniray.core` in a virtual world.

One seed decides everything, and replays exactly: `python -m tests.sim --seed N`.

::

    workload ──programs──▶ workers (real Owner, simulated executor)
                              │ unix sockets, rings: reliable, in order
    faults ──▶ crash, cut ──▶ nodes (real Node) ◀─▶ network: loss, delay, duplicates, partitions
                              │  real Links                 │
                              └───────────────▶ head (real Head, storage that survives)
    checkers: look at everything, change nothing

`world` is time, randomness and the trace; nothing in it knows what a cluster is.
"""
