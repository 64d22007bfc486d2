"""The error that a user's input raises."""


class ScanError(ValueError):
    """Input that cannot be used. The message is one sentence that a clinician understands."""
