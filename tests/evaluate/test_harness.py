import json
import math
from pathlib import Path

import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra `eval`)")

from divsel_ray.config import EvaluateConfig
from divsel_ray.errors import InputError
from divsel_ray.evaluate.harness import HarnessTask, figures_of, require_harness
from divsel_ray.evaluate.loading import LoadedModel
from divsel_ray.evaluate.models import Model
from tests.evaluate.worlds import QUESTIONS, save_adapter, save_indifferent_model, write_task


@pytest.fixture(autouse=True)
def data_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_indifferent_model(tmp_path_factory.mktemp("base"))


def test_a_model_to_which_all_tokens_are_alike_takes_the_shorter_choice(tmp_path, base):
    task = HarnessTask("local_choice", write_task(tmp_path / "tasks"), None, EvaluateConfig())
    task.check()
    task.write(Model("m", str(base)), lambda: LoadedModel(str(base)), tmp_path / "out.json")

    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    # Two of three answers are the shorter choice; standard error of a mean of 1, 1, 0 is sqrt(1/3) / sqrt(3).
    assert figures == [
        {"metric": "local_choice acc", "value": 2 / 3, "standard_error": pytest.approx(math.sqrt(1 / 3 / 3)), "count": 3}
    ]


def test_a_limit_takes_the_first_documents_and_an_adapter_changes_the_answers(tmp_path, base):
    folder = write_task(tmp_path / "tasks", metric_list=[{"metric": "perplexity", "aggregation": "perplexity"}])
    folder.joinpath("local_choice.yaml").write_text(
        yaml.safe_dump(
            {
                **yaml.safe_load(folder.joinpath("local_choice.yaml").read_text()),
                "output_type": "loglikelihood",
                "doc_to_target": " {{choices[0]}}",
            }
        )
    )
    from divsel_ray.evaluate import harness

    harness._index.cache_clear()
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["lm_head"])
    loaded = LoadedModel(str(base))
    values = []
    for number, one in enumerate((None, adapter, None)):
        task = HarnessTask("local_choice", folder, 2, EvaluateConfig())
        task.write(Model("m", str(base), one), lambda: loaded, tmp_path / f"{number}.json")
        values.append(json.loads((tmp_path / f"{number}.json").read_text())["figures"][0])
    assert [one["count"] for one in values] == [2, 2, 2]
    assert values[0] == values[2]
    assert values[1]["value"] != values[0]["value"]


def test_an_unknown_name_is_told_with_what_is_like_it(tmp_path, monkeypatch):
    from divsel_ray.evaluate import harness

    class Index:
        all_tasks = ("gsm8k", "mmlu")

    monkeypatch.setattr(harness, "_index", lambda folder, everything: Index)
    with pytest.raises(InputError, match=r"task GSM8: .* did you mean gsm8k\?"):
        HarnessTask("GSM8", None, None, EvaluateConfig()).check()


def test_data_that_cannot_be_fetched_is_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'someone/something' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    folder = write_task(tmp_path / "tasks", dataset_path="someone/something", dataset_kwargs={})
    with pytest.raises(InputError) as caught:
        HarnessTask("local_choice", folder, None, EvaluateConfig()).check()
    assert "task local_choice: its data could not be downloaded" in str(caught.value)
    assert "--tasks-folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_whose_data_is_missing_is_told(tmp_path):
    folder = write_task(tmp_path / "tasks")
    (folder / "questions.jsonl").unlink()
    with pytest.raises(InputError, match="task local_choice: cannot be loaded"):
        HarnessTask("local_choice", folder, None, EvaluateConfig()).check()


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(InputError, match=r"--tasks-folder: .*no such folder"):
        require_harness(tmp_path / "none")


def test_the_identity_follows_the_data_beside_the_task_file_and_how_it_is_asked(tmp_path):
    folder = write_task(tmp_path / "tasks")
    known = [HarnessTask("local_choice", folder, limit, config).identity() for limit, config in _WAYS]
    (folder / "questions.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n")
    known.append(HarnessTask("local_choice", folder, *_WAYS[0]).identity())
    assert len({json.dumps(one) for one in known}) == len(known)


def test_the_identity_follows_every_byte_of_large_data_and_not_what_python_leaves(tmp_path):
    folder = write_task(tmp_path / "tasks")
    data, half = folder / "large.bin", 2 << 20
    data.write_bytes(bytes(2 * half))
    before = HarnessTask("local_choice", folder, None, EvaluateConfig()).identity()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "functions.pyc").write_bytes(b"x")
    assert HarnessTask("local_choice", folder, None, EvaluateConfig()).identity() == before
    data.write_bytes(bytes(half) + b"x" + bytes(half - 1))
    assert HarnessTask("local_choice", folder, None, EvaluateConfig()).identity() != before


_WAYS = [
    (None, EvaluateConfig()),
    (2, EvaluateConfig()),
    (None, EvaluateConfig(fewshot=1)),
    (None, EvaluateConfig(chat=True)),
    (None, EvaluateConfig(dtype="bfloat16")),
]


def test_of_a_group_the_group_alone_is_shown_and_of_a_tag_every_task():
    results = {
        "mmlu": {"alias": "mmlu", "acc,none": 0.5, "acc_stderr,none": 0.1},
        "mmlu_a": {"alias": " - a", "acc,none": 0.4, "acc_stderr,none": "N/A"},
    }
    raw = {"results": results, "n-samples": {"mmlu_a": {"original": 9, "effective": 4}}}

    group, tag = figures_of(raw, "mmlu"), figures_of(raw, "humanities")
    assert group == [{"metric": "mmlu acc", "value": 0.5, "standard_error": 0.1, "count": 4}]
    assert [(one["metric"], one["standard_error"]) for one in tag] == [("mmlu acc", 0.1), ("mmlu_a acc", None)]


def test_the_shipped_gsm8k_task_runs_on_local_files(tmp_path, base):
    for name in ("train", "test"):
        rows = [{"question": "how are you", "answer": f"one two #### {number}"} for number in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shipped = Path(__file__).parents[2] / "jobs" / "configs" / "tasks" / "gsm8k_local.yaml"
    (tmp_path / shipped.name).write_text(shipped.read_text())
    task = HarnessTask("gsm8k_local", tmp_path, 2, EvaluateConfig(fewshot=1))
    task.check()
    task.write(Model("m", str(base)), lambda: LoadedModel(str(base)), tmp_path / "out.json")

    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert [(one["metric"], one["value"], one["count"]) for one in figures] == [
        ("gsm8k_local exact_match (strict-match)", 0.0, 2),
        ("gsm8k_local exact_match (flexible-extract)", 0.0, 2),
    ]
