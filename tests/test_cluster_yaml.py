"""The cluster file passes Ray's own checks and keeps its ports closed, and the shipped job configurations are valid."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from divsel_ray.config.arena import load_arena
from divsel_ray.config.files import load_config
from divsel_ray.config.tuning import load_tuning

ROOT = Path(__file__).parents[1]
COMMANDS = ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def check(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_the_cluster_file_passes_rays_checks(config):
    kinds = check(config)["available_node_types"]
    assert {name for name, kind in kinds.items() if kind["resources"].get("GPU")} == {"gpu"}
    assert all(0 <= kinds[name]["min_workers"] < kinds[name]["max_workers"] for name in ("cpu", "gpu"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda config: config.update(max_wrkers=config.pop("max_workers")), "max_wrkers"),
        (lambda config: config["available_node_types"]["cpu"].update(min_worker=1), "min_worker"),
        (lambda config: config["available_node_types"]["gpu"].pop("node_config"), "node_config"),
        (lambda config: config.update(head_node_type="heads"), "head_node_type"),
        (lambda config: config["provider"].pop("type"), "type"),
    ],
)
def test_rays_checks_see_what_is_misspelt_or_missing(config, damage, said):
    damage(config)
    with pytest.raises(Exception, match=said):
        check(config)


def test_the_head_takes_no_work(config):
    head = check(config)["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    # Ray starts no worker of the head's kind unless it is told to.
    assert head["max_workers"] == 0


def open_to_the_world(rules):
    """Ports that rules of a security group open to every address."""
    ranges = [(rule, one) for rule in rules for one in (*rule.get("IpRanges", []), *rule.get("Ipv6Ranges", []))]
    return {
        (rule["FromPort"], rule["ToPort"])
        for rule, one in ranges
        if one.get("CidrIp", one.get("CidrIpv6")) in ("0.0.0.0/0", "::/0")
    }


def test_no_security_group_opens_a_port_but_ssh(config):
    from ray.autoscaler._private.aws.config import _create_default_inbound_rules

    extra = config["provider"].get("security_group", {}).get("IpPermissions", [])
    assert open_to_the_world(_create_default_inbound_rules(["group"], extra)) == {(22, 22)}
    assert not any("SecurityGroupIds" in kind["node_config"] for kind in config["available_node_types"].values())
    everything = [{"FromPort": 8265, "ToPort": 8265, "IpProtocol": "TCP", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    assert (8265, 8265) in open_to_the_world(_create_default_inbound_rules(["group"], everything))


def starts(config):
    return [line for key in COMMANDS for line in config[key] if "ray start" in line]


def test_the_job_server_listens_on_the_head_alone_and_every_node_wants_the_token(config):
    head, worker = starts(config)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--head" not in worker
    assert all(re.search(r"export .*RAY_AUTH_MODE=token.*; *ray start ", line) for line in (head, worker))
    home = f"/home/{config['auth']['ssh_user']}"
    assert config["file_mounts"][f"{home}/.ray/auth_token"] == "~/.ray/auth_token"
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()


def test_the_commands_are_shell_and_ray_knows_their_options(config):
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in (*option.opts, *option.secondary_opts)}
    for line in (line for key in COMMANDS for line in config[key]):
        subprocess.run(["bash", "-n", "-c", line], check=True)
    used = {name for line in starts(config) for name in re.findall(r"--[a-z-]+", line)}
    assert used <= known
    assert "--head" in used


def test_nodes_install_the_package_that_is_sent_to_them(config):
    [there] = [remote for remote, here in config["file_mounts"].items() if here == "."]
    assert any(
        f'pip install -q -e "{there.replace("/home/ubuntu", "$HOME")}[gpu,train]"' in line for line in config["setup_commands"]
    )
    assert {"runs", ".git", ".venv"} <= set(config["rsync_exclude"])


def test_files_with_keys_are_neither_committed_nor_sent_to_nodes(config):
    keys = {".env", "token"}
    assert keys <= set(config["rsync_exclude"])
    assert keys <= set((ROOT / ".gitignore").read_text().splitlines())


LOADERS = {"arena": load_arena, "tune_k": load_tuning}


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_shipped_configuration_is_valid_and_names_its_command(path):
    assert LOADERS.get(path.stem, load_config)(path)
    command = path.stem.partition("_")[0] if path.stem in LOADERS else "run"
    assert f"divsel {command} jobs/configs/{path.name}" in path.read_text().split("\n\n")[0]
