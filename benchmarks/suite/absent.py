"""Why a subject is not measured."""

from fas.errors import FASError


class AbsentError(FASError):
    """A subject that this machine or this model cannot have; the message is the reason that its row gives."""
