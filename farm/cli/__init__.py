"""The command line: ``farm …``."""

import sys


def main() -> None:
    try:
        from farm.cli.app import run
    except KeyboardInterrupt:  # before there is anything to continue
        sys.exit(130)

    sys.exit(run(sys.argv[1:]))
