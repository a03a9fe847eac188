"""How to run miniray on many machines, and `cluster.demo`, which plays it on one."""
