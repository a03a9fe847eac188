"""`python -m miniray`: the same command line as `miniray`."""

from miniray.cli import main

if __name__ == "__main__":
    main()
