import lightning.pytorch  # noqa: F401  # its log handler keeps the stderr that it is first imported under
