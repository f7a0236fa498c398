"""The one error of the data layer."""

from ssl_equi.errors import UserError


class DataError(UserError):
    """A file of a data set is missing, damaged, or not what its manifest says; the message names it and the cure."""
