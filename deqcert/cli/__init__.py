"""The command line, ``deqcert VERB``; its verbs are listed in :mod:`deqcert.cli.entry`."""

from deqcert.cli.entry import main

__all__ = ["main"]
