"""The two ways a job ends badly, and nothing else."""


class InputError(Exception):
    """The input or the configuration is wrong: exit code 2.

    The message is one line that names the file, row or key, what was expected, and what to do.
    """


class JobError(Exception):
    """The job failed for a reason the user did not type: exit code 1. The run folder stays resumable."""
