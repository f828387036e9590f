"""`python -m apl_guard`."""

from apl_guard.cli import main

if __name__ == "__main__":
    main()
