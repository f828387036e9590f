"""The program: `apl-guard`, and `python -m apl_guard`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    try:
        from apl_guard.cli import main as run  # takes a moment, in which somebody may press Ctrl-C
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
