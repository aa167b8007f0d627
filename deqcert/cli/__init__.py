"""The command line: ``deqcert fit | validate | test | certify | verify | report | convert | attack``."""

from deqcert.cli.entry import main

__all__ = ["main"]
