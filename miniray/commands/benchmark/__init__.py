"""What `miniray microbenchmark` measures, and how figures are compared."""
