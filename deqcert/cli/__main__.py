"""``python -m deqcert.cli``."""

import sys

from deqcert.cli.entry import main

sys.exit(main())
