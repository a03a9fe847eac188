"""Hostile input for parsers and machines.

`python -m tests.fuzz TARGET` runs a target under atheris; the tests replay the corpus and some
thousand seeded inputs without it.
"""
