"""Errors that the command line distinguishes."""


class UsageError(ValueError):
    """Invalid arguments of a command; `pea-jax` exits with 2."""
