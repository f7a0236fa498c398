"""The one kind of error that is meant for the user."""


class UserError(RuntimeError):
    """Something that the user can mend; the message is one sentence with the thing, its value and the cure."""
