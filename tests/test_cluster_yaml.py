"""The cluster file passes Ray's own schema, and the shipped job configurations are valid."""

from pathlib import Path

import pytest
import yaml

from divsel_ray.config.files import load_config

ROOT = Path(__file__).parents[1]


def check(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_the_cluster_file_passes_rays_schema():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    check(config)
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0


def test_rays_schema_sees_a_misspelt_key():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    config["max_wrkers"] = config.pop("max_workers")
    with pytest.raises(Exception, match="max_wrkers"):
        check(config)


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_job_configuration_is_valid_and_names_its_command(path):
    assert load_config(path).budget > 0
    assert f"divsel run jobs/configs/{path.name}" in path.read_text().split("\n\n")[0]
