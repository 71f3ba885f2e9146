"""`python -m recast` is the command `recast`."""

from recast.cli import main

if __name__ == "__main__":
    main()
