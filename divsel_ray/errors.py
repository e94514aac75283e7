"""The two ways a job ends badly, and how other exceptions are told."""


class InputError(Exception):
    """The input or the configuration is wrong: exit code 2.

    The message is one line that names the file, row or key, what was expected, and what to do.
    """


class JobError(Exception):
    """The job failed for a reason the user did not type: exit code 1. The run folder stays resumable."""


def one_line(error: object, length: int = 300) -> str:
    """An exception as one line, at most about `length` characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:length]}".removesuffix(": ")
