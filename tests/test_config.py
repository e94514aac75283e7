"""The configuration: what is wrong is named, with its key, in one line."""

import pytest
import yaml

from divsel_ray.config import Config, EvaluateConfig
from divsel_ray.config.arena import ArenaConfig
from divsel_ray.config.files import dump_config, load_config, parse_config, quickstart_config, quickstart_text
from divsel_ray.config.reference import find_settings, list_settings
from divsel_ray.config.tuning import TuningConfig
from divsel_ray.errors import InputError

MINIMAL = "budget: 10\npool: {data: rows.jsonl}\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (MINIMAL + "bugdet: 3\n", "bugdet: unknown key; expected one of budget, nested,"),
        (MINIMAL + "clean: {banana: 3}\n", "clean.banana: unknown key; expected one of min_tokens, max_tokens,"),
        (MINIMAL + "refine: {train: {model: m, lora: 3}}\n", "refine.train.lora: unknown key; expected one of model, method,"),
        (MINIMAL + "cluster: {k: many}\n", "cluster.k"),
        (MINIMAL + "cluster: {k: 0}\n", "cluster.k"),
        (MINIMAL + "quality: {source: magic}\n", "expected none, reward, reward:MODEL, ifd:MODEL, perplexity:MODEL"),
        (MINIMAL + "quality: {source: reward}\n", "need a `reward` section"),
        (MINIMAL + "quality: {source: 'deita:a,'}\n", "expected two models"),
        (MINIMAL + "quality: {source: 'column:stars'}\n", "needs pool.score_column: stars, the only extra column"),
        (
            "budget: 10\npool: {data: rows.jsonl, score_column: likes}\nquality: {source: 'column:stars'}\n",
            "needs pool.score_column: stars, the only extra column of the input that the pool keeps; it is likes",
        ),
        (
            MINIMAL + "quality: {source: 'ifd:m', oversample: 2}\nbudget_unit: tokens\n",
            "quality.oversample: needs a budget in rows",
        ),
        (MINIMAL + "quality: {source: 'ifd:m', oversample: 2}\nselect: {quotas: {a: 1}}\n", "quality.oversample: needs"),
        (MINIMAL + "embed: {given: v.npy, api: {model: m}}\n", "given and api are alternatives; remove one"),
        (MINIMAL + "embed: {api: {model: m}, encoder: vllm}\n", "so encoder vllm would not be used; remove one"),
        (MINIMAL + "embed: {given: v.npy, encoder: causal_lm}\n", "the vectors exist, so encoder causal_lm would not be used"),
        (MINIMAL + "reward: {}\n", "exactly one of `model`"),
        ("pool: {data: rows.jsonl}\n", "budget"),
        ("- 1\n", "expected a mapping"),
        ("budget: [1\n", "not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(text, key):
    with pytest.raises(InputError) as error:
        parse_config(text, "job.yaml")
    assert key in str(error.value)
    assert str(error.value).startswith("job.yaml: ")
    assert "\n" not in str(error.value)


def test_overrides_reach_nested_settings():
    config = parse_config(MINIMAL, "job.yaml", ["cluster.k=64", "select.temperature=0.5", "budget=7"])
    assert (config.cluster.k, config.select.temperature, config.budget) == (64, 0.5, 7)


@pytest.mark.parametrize("override", ["cluster.k", "=3", "budget.rows=3", "cluster.kk=3"])
def test_a_wrong_override_is_refused(override):
    with pytest.raises(InputError):
        parse_config(MINIMAL, "job.yaml", [override])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such configuration file"):
        load_config(tmp_path / "nowhere.yaml")


def test_the_quickstart_configuration_is_valid_and_survives_a_round_trip():
    for fast in (False, True):
        config = quickstart_config(fast)
        assert parse_config(dump_config(config), "dump") == config
    assert Config.model_validate(yaml.safe_load(quickstart_text())) == quickstart_config(fast=False)


def test_fast_changes_sizes_only():
    full, fast = (quickstart_config(flag).model_dump() for flag in (False, True))
    assert (fast["budget"], fast["refine"]["rounds"], fast["pool"]["sample"]) == (16, 2, 300)
    assert fast["refine"]["train"] == full["refine"]["train"]
    assert fast["refine"]["generate"] == full["refine"]["generate"]


def test_k_defaults_to_a_twentieth_of_a_small_pool():
    cluster = parse_config(MINIMAL, "job.yaml").cluster
    assert [cluster.resolved(rows).k for rows in (5, 100, 2000, 10**6)] == [1, 5, 100, 256]


def test_every_setting_is_described():
    def undescribed(model):
        for name, field in model.model_fields.items():
            kind = field.annotation
            nested = [kind, *getattr(kind, "__args__", ())]
            models = [m for m in nested if isinstance(m, type) and hasattr(m, "model_fields")]
            if not field.description and not models:
                yield f"{model.__name__}.{name}"
            for inner in models:
                yield from undescribed(inner)

    assert list(undescribed(Config)) == []


def test_every_setting_says_what_it_does():
    for kind in (Config, TuningConfig, ArenaConfig, EvaluateConfig):
        silent = [one.place for one in list_settings(kind) if not one.description]
        assert not silent


def test_settings_show_their_place_type_bounds_and_default():
    found = {one.place: one for one in list_settings(Config)}
    assert (found["budget"].takes, found["budget"].required) == ("integer >= 1", True)
    assert (found["cluster.k"].takes, found["cluster.k"].default) == ("integer >= 1, or null", None)
    assert (found["embed.dtype"].takes, found["embed.dtype"].default) == ("float32 | bfloat16 | float16", "float32")
    assert found["select.quotas"].takes == "mapping from string to integer"
    assert found["refine"].takes == found["refine.train.workers"].takes == "section"


def test_what_is_shown_as_default_is_what_the_configuration_holds():
    config = parse_config(MINIMAL, "job.yaml")
    for one in list_settings(Config):
        section, *_ = one.place.split(".")
        if not one.required and one.takes != "section" and getattr(config, section) is not None:
            value = config
            for name in one.place.split("."):
                value = getattr(value, name, None)
            assert value == one.default or value is None


def test_a_setting_is_found_by_its_section_and_a_wrong_one_is_answered_with_what_is_near():
    assert [one.place for one in find_settings(Config, "prices")][:2] == ["prices", "prices.cpu_hour"]
    assert [one.place for one in find_settings(Config, "cluster.k")] == ["cluster.k"]
    with pytest.raises(InputError, match=r"cluster\.kk: no such setting; similar ones: cluster\.k"):
        find_settings(Config, "cluster.kk")
