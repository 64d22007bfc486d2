"""The errors that are meant for the person who uses the program; any other error is a fault of the program."""


class InputError(ValueError):
    """What was given cannot be used: a file, a setting or a command. The message is one sentence that says why."""


class ScanError(InputError):
    """Input that cannot be used. The message is one sentence that a clinician understands."""


class CheckpointError(InputError):
    """A checkpoint that cannot be used. The message says what is wrong and what to do; it holds no path."""
