"""`python -m polypath` is `polypath`."""

from polypath.cli import main

if __name__ == "__main__":
    main()
