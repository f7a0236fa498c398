"""The one error of the data layer."""


class DataError(RuntimeError):
    """A file of a data set is missing, damaged, or not what its manifest says; the message names it and the cure."""
