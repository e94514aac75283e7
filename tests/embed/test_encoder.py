"""The encoder against sentence-transformers' own `encode`, and the stage's independence of layout."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from divsel_ray.config import EmbedConfig, Workers
from divsel_ray.embed.encoder import load_encoder
from divsel_ray.embed.files import texts_of
from divsel_ray.embed.stage import embed_pool
from divsel_ray.errors import InputError
from divsel_ray.progress import Silent
from tests.models.tiny import save_encoder

TEXTS = ["how are you", "write a story about cats and dogs", "rain", "hello " * 300]
KEYS = [f"{i:032x}" for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("encoder")))


def test_short_texts_get_sentence_transformers_own_vectors(model):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(model, device="cpu").encode(TEXTS[:3], normalize_embeddings=True)
    assert np.abs(load_encoder(EmbedConfig(model=model)).encode(TEXTS[:3], KEYS[:3]) - reference).max() < 2e-3


def test_the_packaged_encoder_gives_sentence_transformers_own_vectors():
    from sentence_transformers import SentenceTransformer

    from divsel_ray.models.references import resolve_model

    config = EmbedConfig()
    reference = SentenceTransformer(resolve_model(config.model), device="cpu").encode(TEXTS[:3], normalize_embeddings=True)
    assert np.abs(load_encoder(config).encode(TEXTS[:3], KEYS[:3]) - reference).max() < 1e-3


def test_bfloat16_agrees_with_float32_to_a_thousandth_in_cosine_on_real_rows():
    from tests.embed.real_rows import sharegpt_texts

    texts = sharegpt_texts(24)
    keys = [f"{at:032x}" for at in range(len(texts))]
    exact, fast = (
        load_encoder(EmbedConfig(dtype=dtype, max_tokens=128)).encode(texts, keys) for dtype in ("float32", "bfloat16")
    )
    cosines = (exact.astype(np.float64) * fast).sum(axis=1)
    assert cosines.min() > 0.999
    assert not np.array_equal(exact, fast)


def test_vectors_have_unit_length_for_any_text_length(model):
    vectors = load_encoder(EmbedConfig(model=model, window=16)).encode([*TEXTS, ""], [*KEYS, "f" * 32]).astype(np.float64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=2e-3)


def test_only_the_first_max_tokens_count(model):
    encoder = load_encoder(EmbedConfig(model=model, max_tokens=8))
    short, long = encoder.encode(["red " * 8, "red " * 8 + "green " * 50], KEYS[:2])
    assert np.array_equal(short, long)


def test_vectors_do_not_depend_on_the_order_of_texts(model):
    encoder = load_encoder(EmbedConfig(model=model, window=16))
    forward, backward = encoder.encode(TEXTS, KEYS), encoder.encode(TEXTS[::-1], KEYS[::-1])
    assert np.array_equal(forward, backward[::-1])


def test_a_setting_says_what_of_a_row_is_embedded():
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "Me.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    table = pa.table({"messages": [messages], "prompt": ["Be brief.\n\nHi\n\nHello.\n\nWho?"], "completion": ["Me."]})
    assert texts_of(table, "prompt") == ["Be brief.\n\nHi\n\nHello.\n\nWho?"]
    assert texts_of(table, "prompt_completion") == ["Be brief.\n\nHi\n\nHello.\n\nWho?\nMe."]
    assert texts_of(table, "user_turns") == ["Hi\n\nWho?"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"encoder": "sentence_transformers"}),
        ({"api": {"model": "m"}}, {"api": {"model": "m", "price": 1, "max_cost": 5, "concurrency": 9}, "dtype": "bfloat16"}),
        ({"given": "a.npy"}, {"given": "b.npy", "model": "other"}),
        ({}, {"workers": {"count": 3}}),
    ],
)
def test_what_the_encoder_does_not_look_at_is_no_part_of_its_identity(one, other):
    assert EmbedConfig(**one).identity() == EmbedConfig(**other).identity()


@pytest.mark.parametrize("other", [{"encoder": "causal_lm"}, {"dtype": "bfloat16"}, {"encoder": "vllm"}, {"api": {"model": "m"}}])
def test_what_changes_the_vectors_is_part_of_it(other):
    assert EmbedConfig(**other).identity() != EmbedConfig().identity()


@pytest.mark.parametrize(
    "values", [{"given": "a.npy", "api": {"model": "m"}}, {"encoder": "vllm", "api": {"model": "m"}}, {"pooling": "mean"}]
)
def test_settings_of_two_encoders_at_once_are_refused(values):
    with pytest.raises(ValidationError):
        EmbedConfig(**values)


def test_a_model_that_cannot_be_loaded_is_one_clear_line_from_the_stage(cluster, tmp_path):
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"row_id": ["0" * 32], "prompt": ["a"], "completion": ["b"]}), tmp_path / "part.parquet")
    with pytest.raises(InputError, match=r"embed\.model .*empty: cannot be loaded"):
        embed_pool([str(tmp_path / "part.parquet")], EmbedConfig(model=str(tmp_path / "empty")), tmp_path, cluster, Silent())


def test_the_stage_gives_the_same_files_for_one_and_two_actors(model, cluster, tmp_path):
    files = []
    for part in range(3):
        ids = [f"{part:02x}{i:030x}" for i in range(5)]
        table = pa.table({"row_id": ids, "prompt": ["how are you"] * 5, "completion": [f"i am {w}" for w in TEXTS] + ["fine"]})
        files.append(str(tmp_path / f"part-{part}.parquet"))
        pq.write_table(table, files[-1])
    written = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        config = EmbedConfig(model=model, workers=Workers(count=count))
        assert embed_pool(files, config, folder, cluster, Silent())["rows"] == 15
        written.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert len(written[0]) == 3
    assert written[0] == written[1]
    assert pq.read_schema(tmp_path / "1" / "part-0.parquet").field("embedding").type == pa.list_(pa.float16(), 32)
