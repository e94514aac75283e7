"""The two ways a job ends badly, and how other exceptions are told."""


class InputError(Exception):
    """The input or the configuration is wrong: exit code 2.

    The message is one line that names the file, row or key, what was expected, and what to do.
    """


class JobError(Exception):
    """The job failed for a reason the user did not type: exit code 1. The run folder stays resumable."""


def one_line(error: BaseException) -> str:
    """An exception as one line: its kind, and at most 300 characters of what it says."""
    return f"{type(error).__name__}: {words_of(error)}".removesuffix(": ")


def words_of(error: BaseException, length: int = 300) -> str:
    """What an exception says, as one line of at most `length` characters; for where its kind would tell a user nothing."""
    return " ".join(str(error).split())[:length]


def first_line(error: BaseException) -> str:
    """At most 200 characters of the first line of what an exception says, or its kind; for libraries that go on with details."""
    return _lines(error)[0][:200]


def last_line(error: BaseException) -> str:
    """The last line of what an exception says, or its kind; of what Ray wraps in tracebacks, the error itself."""
    return _lines(error)[-1].strip()


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]
