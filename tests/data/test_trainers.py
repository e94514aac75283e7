from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.data.export import write_rows
from divsel_ray.data.trainers import _UnfitError, alternate, export_selection
from divsel_ray.errors import InputError
from tests.json_lines import read_lines


def messages(*turns):
    """`"user Hi"` becomes a message of the user that says Hi."""
    return [dict(zip(("role", "content"), turn.split(" ", 1), strict=True)) for turn in turns]


TALKS = [
    messages("system Be brief.", "user Grüße", "assistant 😀"),
    messages("user a", "user b", "assistant call", "tool one", "tool two", "assistant c", "assistant d"),
]


def selection(path: Path, conversations=TALKS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"row_id": [f"{i:032x}" for i in range(len(conversations))], "messages": conversations}
    write_rows(pa.table({**columns, "cluster": [1] * len(conversations), "source": ["a"] * len(conversations)}), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("trainer", ["axolotl", "trl"])
def test_conversations_are_written_as_they_are_with_nothing_else(tmp_path, trainer, suffix):
    data, _ = export_selection(selection(tmp_path / "run" / f"selection{suffix}"), trainer, tmp_path / "out")
    assert data == tmp_path / "out" / "run.jsonl"
    assert read_lines(data) == [{"messages": talk} for talk in TALKS]


def test_llama_factory_gets_conversations_that_alternate(tmp_path):
    data, _ = export_selection(selection(tmp_path / "picked.parquet"), "llama-factory", tmp_path)
    assert data == tmp_path / "picked.jsonl"
    assert [line["messages"] for line in read_lines(data)] == [
        TALKS[0],
        messages("user a\n\nb", "assistant call", "tool one\n\ntwo", "assistant c\n\nd"),
    ]


def test_the_entry_joins_those_that_llama_factory_has_and_is_replaced_by_the_next(tmp_path):
    others = {"zeta": {"file_name": "z.json"}, "alpha": {"hf_hub_url": "x/ü"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(others), encoding="utf-8")
    for _ in range(2):
        _, info = export_selection(selection(tmp_path / "picked.jsonl"), "llama-factory", tmp_path, "my picks, 2")
    assert info == tmp_path / "dataset_info.json"
    entries = json.loads(info.read_text(encoding="utf-8"))
    assert list(entries) == ["zeta", "alpha", "my_picks_2"]
    assert {name: entries[name] for name in others} == others
    assert entries["my_picks_2"] == {
        "file_name": "my_picks_2.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "observation_tag": "tool",
            "function_tag": "function_call",
            "system_tag": "system",
        },
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected a JSON object"),
        ("{", "expected a JSON object"),
        ('{"run": {"file_name": "a.json"}}', "another data set run"),
    ],
)
def test_entries_that_are_not_ours_are_never_overwritten(tmp_path, content, message):
    (tmp_path / "dataset_info.json").write_text(content)
    with pytest.raises(InputError, match=message):
        export_selection(selection(tmp_path / "run" / "selection.jsonl"), "llama-factory", tmp_path)
    assert (tmp_path / "dataset_info.json").read_text() == content
    assert not (tmp_path / "run.jsonl").exists()


def test_the_axolotl_section_names_the_file_and_its_keys(tmp_path):
    data, entry = export_selection(selection(tmp_path / "picked.jsonl"), "axolotl", tmp_path / "out")
    assert entry == tmp_path / "out" / "axolotl.yaml"
    assert yaml.safe_load(entry.read_text()) == {
        "datasets": [
            {
                "path": data.as_posix(),
                "ds_type": "json",
                "type": "chat_template",
                "field_messages": "messages",
                "message_property_mappings": {"role": "role", "content": "content"},
                "roles_to_train": ["assistant"],
            }
        ]
    }


def test_the_trl_section_reads_the_file_as_json(tmp_path):
    data, entry = export_selection(selection(tmp_path / "picked.jsonl"), "trl", tmp_path / "out")
    assert entry == tmp_path / "out" / "trl.yaml"
    assert entry.read_text().splitlines()[1] == "# trl sft --config trl.yaml --model_name_or_path MODEL --output_dir FOLDER"
    assert yaml.safe_load(entry.read_text()) == {
        "datasets": [{"path": "json", "data_files": data.as_posix(), "columns": ["messages"]}]
    }


@pytest.mark.parametrize("trainer", ["axolotl", "trl"])
def test_a_section_is_written_again_but_never_over_a_file_of_the_users(tmp_path, trainer):
    picked = selection(tmp_path / "picked.parquet")
    data, entry = export_selection(picked, trainer, tmp_path)
    assert export_selection(picked, trainer, tmp_path) == [data, entry]
    data.unlink()
    entry.write_text("base_model: mine\n")
    with pytest.raises(InputError, match="would overwrite a file that divsel-ray did not write"):
        export_selection(picked, trainer, tmp_path)
    assert entry.read_text() == "base_model: mine\n"


@pytest.mark.parametrize("trainer", ["llama-factory", "axolotl", "trl"])
def test_neither_the_selection_nor_another_file_is_overwritten(tmp_path, trainer):
    picked = selection(tmp_path / "picked.jsonl")
    before = picked.read_bytes()
    with pytest.raises(InputError, match=r"picked\.jsonl: another file exists"):
        export_selection(picked, trainer, tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "picked.jsonl").write_text("mine")
    with pytest.raises(InputError, match=r"picked\.jsonl: another file exists"):
        export_selection(picked, trainer, tmp_path / "out")
    assert picked.read_bytes() == before
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["mydata", "picked"])
def test_a_data_set_that_the_user_has_in_llama_factory_is_not_overwritten(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / "picked.jsonl").write_text("mine")
    (out / "dataset_info.json").write_text(json.dumps({name: {"file_name": "picked.jsonl"}}))
    with pytest.raises(InputError, match=r"picked\.jsonl: another file exists"):
        export_selection(selection(tmp_path / "picked.jsonl"), "llama-factory", out)
    assert (out / "picked.jsonl").read_text() == "mine"
    assert json.loads((out / "dataset_info.json").read_text()) == {name: {"file_name": "picked.jsonl"}}


def test_an_entry_among_others_that_the_user_wrote_anew_is_still_ours(tmp_path):
    picked, out = selection(tmp_path / "picked.parquet"), tmp_path / "out"
    data, info = export_selection(picked, "llama-factory", out)
    info.write_text(json.dumps({"other": {"file_name": "o.json"}, **json.loads(info.read_text())}))
    assert export_selection(picked, "llama-factory", out) == [data, info]
    assert list(json.loads(info.read_text())) == ["other", "picked"]


@pytest.mark.parametrize("trainer", ["axolotl", "trl"])
def test_a_file_whose_name_is_but_part_of_one_in_the_section_is_not_overwritten(tmp_path, trainer):
    out = tmp_path / "out"
    export_selection(selection(tmp_path / "my_picked.parquet"), trainer, out)
    (out / "picked.jsonl").write_text("mine")
    with pytest.raises(InputError, match=r"out/picked\.jsonl: another file exists"):
        export_selection(selection(tmp_path / "picked.parquet"), trainer, out)
    assert (out / "picked.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (messages("user a", "assistant b", "system c", "user d", "assistant e"), "a system message after the first turn"),
        (messages("user a", "assistant b", "tool c", "user d", "assistant e"), "adjacent user and tool messages"),
        (messages("assistant a", "user b", "assistant c"), "the assistant speaks first"),
        (messages("user a", "assistant b", "user c"), "the assistant does not speak last"),
    ],
)
def test_conversations_that_llama_factory_would_skip_are_refused_and_counted(tmp_path, talk, reason):
    picked = selection(tmp_path / "picked.jsonl", [TALKS[0], talk, talk])
    with pytest.raises(InputError, match=f"llama-factory would skip 2 rows, the first is 0{{31}}1: {reason}; exclude them"):
        export_selection(picked, "llama-factory", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))
    assert not (tmp_path / "out" / "dataset_info.json").exists()
    assert len(read_lines(export_selection(picked, "trl", tmp_path / "out")[0])) == 3


@given(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=8))
def test_what_is_not_refused_is_what_llama_factory_takes(roles):
    talk = [{"role": role, "content": str(place)} for place, role in enumerate(roles)]
    try:
        made = alternate(talk)
    except _UnfitError:
        return
    turns = made[1:] if made[0]["role"] == "system" else made
    assert all(turn["role"] in (("user", "tool"), ("assistant",))[place % 2] for place, turn in enumerate(turns))
    assert len(turns) % 2 == 0
    assert "\n\n".join(turn["content"] for turn in made) == "\n\n".join(turn["content"] for turn in talk)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("picked.jsonl", None, "no such file"),
        ("picked.csv", "x", r"expected a selection in \.parquet or \.jsonl"),
        ("picked.jsonl", "{", "line 1: not JSON"),
        ("picked.jsonl", '{"text": "x"}', "line 1: expected `messages`"),
        ("picked.jsonl", '{"messages": [{"role": "user"}]}', "line 1: expected `messages`"),
        ("picked.jsonl", '{"messages": []}', "line 1: expected `messages`"),
    ],
)
def test_a_selection_that_is_none_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        export_selection(tmp_path / name, "trl", tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_a_parquet_file_without_messages_is_refused(tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"row_id": ["0" * 32]}), tmp_path / "picked.parquet")
    with pytest.raises(InputError, match="row 1: expected `messages`"):
        export_selection(tmp_path / "picked.parquet", "trl", tmp_path)


def test_a_name_without_a_letter_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected letters or digits"):
        export_selection(selection(tmp_path / "picked.jsonl"), "trl", tmp_path, "...")
