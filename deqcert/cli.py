"""The command line: ``deqcert fit | validate | test | certify``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning.pytorch.cli import LightningCLI

import deqcert.callbacks
import deqcert.models
import deqcert.smoothing  # noqa: F401  (makes short class names known to the parser)
from deqcert.data import ImageDataModule
from deqcert.errors import DeqcertError
from deqcert.training import DEQClassifier


class DeqCertCLI(LightningCLI):
    pass


def main(args: Sequence[str] | None = None) -> int:
    try:
        DeqCertCLI(DEQClassifier, ImageDataModule, subclass_mode_data=True, seed_everything_default=0, save_config_kwargs={"overwrite": True}, args=args)
    except DeqcertError as error:
        print(f"deqcert: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
