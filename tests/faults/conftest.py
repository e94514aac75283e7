"""The option for all stages with all faults, the job, and its undisturbed run."""

import pytest

from tests.e2e.jobs import finished
from tests.faults.harness import write_faulty_job, write_static_job


def pytest_addoption(parser):
    parser.addoption("--full-matrix", action="store_true", help="every stage with every fault, not each stage with one")


@pytest.fixture(scope="session")
def full_matrix(request):
    # Not known where pytest was not started with this folder.
    return request.config.getoption("--full-matrix", default=False)


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    return write_faulty_job(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def undisturbed(job):
    """The selection of a run that nothing happened to."""
    return (finished(job) / "selection.jsonl").read_bytes()


@pytest.fixture(scope="session")
def static_job(tmp_path_factory):
    return write_static_job(tmp_path_factory.mktemp("static"))


@pytest.fixture(scope="session")
def static_run(static_job):
    """A finished run of the static job; to be copied, never changed."""
    return finished(static_job)
