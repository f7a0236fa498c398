"""The errors that are meant for users: each message is one sentence with the thing, its value and the cure."""


class UserError(RuntimeError):
    """Something that the user can mend; the message is one sentence with the thing, its value and the cure."""


class RunError(UserError):
    """A run can't start or go on; the message says what to do."""


class LostProcessError(RunError):
    """Another process of the run has ended or hangs."""


class CheckpointError(UserError):
    """A checkpoint can't be written, read, or put into the objects that it should fill."""


class LayoutError(CheckpointError):
    """The tensors are not those of the layout: what is wrong, and what to do."""

    def __init__(self, problem: str, cure: str) -> None:
        super().__init__(f"{problem}: {cure}")
        self.problem = problem


class DataError(UserError):
    """A file of a data set is missing, damaged, or not what its manifest says; the message names it and the cure."""


class LostShardError(DataError):
    """A whole file of records can't be read any more, which is never skipped as one bad record is."""


class EncoderError(UserError):
    """An encoder can't be made; the message says what to change."""


class ImageSizeError(EncoderError):
    """An encoder can't take images of this size."""


class FeatureError(UserError):
    """Features can't be used; the message names the encoder and the first bad view."""
