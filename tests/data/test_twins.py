from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from divsel_ray.data import twins
from divsel_ray.data.near_duplicates import banding, jaccard, shingle_set
from divsel_ray.data.sketches import write_sketches
from divsel_ray.data.twins import TwinFiles, twins_of, write_crowds, write_pairs, write_starts, write_twins
from divsel_ray.data.words import WordHasher

WORDS = [f"word{i}" for i in range(3000)]


def texts_with_boilerplate(n, copies, boilerplate, own, changed=1, seed=0):
    """n texts that share their first words; each comes with copies of it that differ in the last words."""
    generator = random.Random(seed)
    texts = []
    for _ in range(n):
        body = generator.sample(WORDS[boilerplate:], k=own)
        texts += [" ".join([*WORDS[:boilerplate], *body, *(f"copy{copy}{i}" for i in range(changed))]) for copy in range(copies)]
    return texts


@pytest.fixture
def search(tmp_path):
    """Search texts for near duplicates, in parts; row i's id is i in hexadecimal. Returns {row: row that stays}."""

    def run(texts, threshold, parts=2, pieces=1, name="twins"):
        hasher, size = WordHasher(), -(-len(texts) // parts)
        folders = [tmp_path / f"{name}-{part}" for part in range(parts)]
        for part, folder in enumerate(folders):
            folder.mkdir()
            rows = range(part * size, min(len(texts), (part + 1) * size))
            ids, words = [f"{row:032x}" for row in rows], [hasher(texts[row]) for row in rows]
            write_sketches(folder, range(len(rows)), ids, words, banding(threshold))
        files = TwinFiles(tmp_path / name, tuple(folders), threshold, pieces)
        assert write_starts(files) == len(texts)
        for step in (write_crowds, write_pairs):
            for task in files.tasks():
                step(files, *task)
        write_twins(files)
        found = [(part * size + row, twin) for part in range(parts) for row, twin in twins_of(files, part).items()]
        return {row: int(twin.kept, 16) for row, twin in found}

    return run


def brute_force(texts, threshold):
    sets, stays = [shingle_set(WordHasher()(text)) for text in texts], list(range(len(texts)))
    alike = [(a, b) for a, b in combinations(range(len(texts)), 2) if jaccard(sets[a], sets[b]) >= threshold]
    for _ in range(8):
        for a, b in alike:
            stays[a] = stays[b] = min(stays[a], stays[b])
    return {row: kept for row, kept in enumerate(stays) if row != kept}


def test_all_near_duplicates_are_found_however_rows_and_keys_are_cut(search):
    texts = texts_with_boilerplate(40, copies=3, boilerplate=10, own=40)
    expected = brute_force(texts, 0.8)
    assert len(expected) == 80
    assert search(texts, 0.8) == search(texts, 0.8, parts=5, pieces=3, name="cut") == expected


def test_near_duplicates_in_a_crowd_that_shares_its_boilerplate_are_found(search, monkeypatch):
    texts = texts_with_boilerplate(150, copies=2, boilerplate=60, own=14, changed=7)
    expected = brute_force(texts, 0.8)
    assert expected == {row: row - 1 for row in range(1, 300, 2)}
    monkeypatch.setattr(twins, "CROWD", 5)
    # Were pairs that met in a crowd taken for compared, 21 of the 150 would be missed.
    assert search(texts, 0.8) == expected


def test_crowds_are_the_rows_of_buckets_that_are_too_large(search, monkeypatch, tmp_path):
    monkeypatch.setattr(twins, "CROWD", 3)
    search(["a b c d e f g"] * 4 + ["h i j k l m n"] * 3, 0.8)
    assert np.load(tmp_path / "twins" / "crowds-000-00000.npy").tolist() == [0, 1, 2, 3]
