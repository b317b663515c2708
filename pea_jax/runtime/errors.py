"""Errors that the command line tells apart."""


class UsageError(ValueError):
    """Arguments of a command that cannot be; `pea-jax` exits with 2."""
