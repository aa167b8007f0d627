"""The command line: ``deqcert fit | validate | test | certify | verify | report | convert | attack | anchor``."""

from deqcert.cli.entry import main

__all__ = ["main"]
