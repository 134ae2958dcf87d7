"""The command line: ``farm …``."""

import sys


def main() -> None:
    from farm.cli.app import run

    sys.exit(run(sys.argv[1:]))
