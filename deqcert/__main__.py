"""``python -m deqcert``."""

import sys

from deqcert.cli import main

sys.exit(main())
