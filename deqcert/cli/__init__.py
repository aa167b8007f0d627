"""The command line: ``deqcert fit | validate | test | certify | verify``."""

from deqcert.cli.entry import main

__all__ = ["main"]
