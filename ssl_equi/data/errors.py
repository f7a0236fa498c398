"""The errors of the data layer."""

from ssl_equi.errors import UserError


class DataError(UserError):
    """A file of a data set is missing, damaged, or not what its manifest says; the message names it and the cure."""


class LostShardError(DataError):
    """A whole file of records can't be read any more, which is never skipped as one bad record is."""


class WorkerError(UserError):
    """A worker process of the loader can't be started or has ended by itself; the message says how."""
