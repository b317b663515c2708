"""What reading the files of a model raises."""


class WeightsError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the module."""
