"""Chaos: real daemons under random faults, a mixed workload whose answers are known, and no leftovers.

`python -m tests.chaos --minutes 10 --seed 7`; `make chaos`. ::

    run ── plan of faults (seed) ──▶ kill -9, SIGSTOP, broken connections, a silent head, full disks
     │                                   │
     ├── cluster: head behind a proxy, three nodes, each with a small store and a disk of its own
     └── drivers: jobs (seed), each with its answer; an error must be typed and name the fault

The seed fixes which faults come, when and on which member of the sorted list of candidates; what is
running at that moment is up to the machine, as with all real processes.

At the end the faults stop: every driver finishes, a calm round succeeds, stores are empty, resources
are back, and when the cluster has ended no process, name or directory of it is left.

`python -m tests.chaos.kill_matrix --each 200` kills each kind of process at random moments and
compares processes, /dev/shm and the temporary directory before and after.
"""
