"""Two models that differ in their weights alone; to be copied, never changed."""

import pytest

from tests.models.tiny import save_language_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return str(save_language_model(tmp_path_factory.mktemp("lm")))


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    return str(save_language_model(tmp_path_factory.mktemp("other"), seed=1))
