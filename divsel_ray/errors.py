"""The two kinds of job failure, and one-line descriptions of other exceptions."""


class InputError(Exception):
    """The input or the configuration is wrong: exit code 2.

    The message is one line that names the file, row or key, what was expected, and what to do.
    """


class JobError(Exception):
    """The job failed for a reason other than the user's input: exit code 1. The run folder can be resumed."""


def one_line(error: BaseException) -> str:
    """An exception as one line: its type and at most 300 characters of its message."""
    return f"{type(error).__name__}: {words_of(error)}".removesuffix(": ")


def words_of(error: BaseException, length: int = 300) -> str:
    """The message of an exception as one line of at most `length` characters, for cases where its type does not help the user."""
    return " ".join(str(error).split())[:length]


def first_line(error: BaseException) -> str:
    """At most 200 characters of the first line of an exception's message, or its type; for libraries that append details."""
    return _lines(error)[0][:200]


def last_line(error: BaseException) -> str:
    """The last line of an exception's message, or its type; for exceptions that Ray wraps in tracebacks, the error itself."""
    return _lines(error)[-1].strip()


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]
