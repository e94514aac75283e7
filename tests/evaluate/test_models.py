import json

import pytest

from divsel_ray.errors import InputError
from divsel_ray.evaluate.models import Model, find_models
from tests.evaluate.worlds import conversation, write_run

HELD_OUT, SELECTED = conversation("how are you", "i am fine"), conversation("write a story", "the sea")


def _adapter(folder, base="some/base"):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 4}))
    return folder


def test_a_run_gives_its_untuned_base_and_its_last_model(tmp_path):
    run = write_run(tmp_path / "job", [HELD_OUT], [SELECTED], {})
    models, runs = find_models([str(run)], [])

    assert [model.name for model in models] == ["untuned", "round 1"]
    assert [model.base for model in models] == [str(run / "base")] * 2
    assert models[1].adapter == run / "round-1/train/t/training/adapter"
    assert models[1].lora_rank == 4
    assert [one.folder for one in runs] == [run]


def test_models_of_several_runs_carry_the_names_of_their_runs(tmp_path):
    runs = [write_run(tmp_path / name, [HELD_OUT], [SELECTED], {}) for name in ("a", "b")]
    models, _ = find_models([str(run) for run in runs], [])
    assert [model.name for model in models] == ["a untuned", "a round 1", "b untuned", "b round 1"]


def test_an_adapter_names_its_own_base(tmp_path):
    folder = _adapter(tmp_path / "one")
    assert find_models([str(folder)], [])[0] == [Model(str(folder), "some/base", folder)]


def test_a_base_and_adapters_on_it_are_compared(tmp_path):
    one, two = _adapter(tmp_path / "one"), _adapter(tmp_path / "two")
    models, runs = find_models(["some/model"], [one, two])
    assert [(model.base, model.adapter) for model in models] == [("some/model", None), ("some/model", one), ("some/model", two)]
    assert not runs


def test_a_model_named_twice_is_measured_once():
    assert [model.name for model in find_models(["some/model", "some/model"], [])[0]] == ["some/model"]


def test_what_leads_nowhere_is_told(tmp_path):
    static = write_run(tmp_path / "static", [HELD_OUT], [SELECTED], {})
    manifest = json.loads((static / "manifest.json").read_text())
    del manifest["config"]["refine"]
    (static / "manifest.json").write_text(json.dumps(manifest))
    for references, adapters, said in (
        ([str(tmp_path / "none")], [], "no such folder"),
        (["package:surely-not-installed"], [], "not installed"),
        (["some/model"], [tmp_path], "adapter_config.json"),
        (["some/model", "other/model"], [_adapter(tmp_path / "one")], "expected exactly one model"),
        ([str(_adapter(tmp_path / "baseless", base=""))], [], "names no base model"),
        ([str(static)], [], "without training a model"),
    ):
        with pytest.raises(InputError, match=said):
            find_models(references, adapters)


def test_a_fingerprint_follows_the_content_of_the_adapter(tmp_path):
    folder = _adapter(tmp_path / "one")
    before = Model("m", "some/model", folder).fingerprint
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    assert Model("m", "some/model", folder).fingerprint != before
    assert Model("m", "some/model").fingerprint == ["some/model"]
