"""A whole cluster in one thread: the real machines of `miniray.core` in a virtual world.

One seed decides everything, and replays exactly: `python -m tests.sim --seed N`.

::

    workload ──programs──▶ workers (real Owner, simulated executor)
                              │ unix sockets, rings: reliable, in order
    faults ──▶ crash, cut ──▶ nodes (real Node) ◀─▶ network: loss, delay, duplicates, partitions
                              │  real Links                 │
                              └───────────────▶ head (real Head, storage that survives)
    checkers: look at everything, change nothing

What is promised, and where it is checked:

- every call ends after the last fault; at rest nothing is left, every object is freed, every
  resource is back (`run`, `checkers.at_rest`);
- a reference has one value for ever, its own; what raised has no value, what has one was run; the
  copies of an object are equal (`oracle`, `checkers.copies_are_equal`);
- a body runs at most once, with n retries at most 1 + n times; calls of one caller start in their
  order (`oracle.body_started`);
- no object is freed while a process can reach it (`oracle.freed`); `references` has short seeds that do
  little else than pass references on;
- resources add up at any time (`checkers.resources_add_up`), groups are whole or absent
  (`checkers.groups_are_whole`);
- a head that starts again knows every saved row (`checkers.rows_are_known`), and keys are registers
  whatever happens to it (`registers`).

Not simulated, so proved elsewhere: bytes in shared memory, processes and descriptors, logs, training.

`world` is time, randomness and the trace; nothing in it knows what a cluster is.
"""
