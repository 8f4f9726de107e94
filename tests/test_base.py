"""Building a base from raw text."""

import hashlib
import json
import os
import signal
from dataclasses import replace

import pytest

from mtcore.base import BaseRecipe, build_base
from mtcore.errors import Interrupted, MissingData, ResumeMismatch, RunLocked
from mtcore.files import locked
from mtcore.interrupts import listening

RECIPE = BaseRecipe(vocabulary=300, width=16, layers=1, heads=2, context=64, sequence=32, step_tokens=256, passes=2)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus/train.txt"
    path.parent.mkdir()
    path.write_text("\n".join(f"the quick brown fox number {n} jumps over the lazy dog {n * n}" for n in range(40)), encoding="utf-8")
    return path.parent


def weights(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_base_is_built_loads_as_any_other_and_is_not_built_twice(corpus, tmp_path):
    from mtcore.modeling.load import find_base, load_model

    told = []
    folder = build_base(corpus, tmp_path / "base", RECIPE, told.append)
    assert told[-1].step == told[-1].steps
    assert told[-1].loss < told[0].loss
    assert find_base(str(folder), tmp_path).context == 64
    assert load_model(folder).config.hidden_size == 16
    assert not (folder / "work").exists()
    again: list[object] = []
    build_base(corpus, folder, RECIPE, again.append)
    assert not again


def test_a_build_that_is_stopped_saves_and_ends_with_the_same_bits(corpus, tmp_path):
    whole = build_base(corpus, tmp_path / "whole", RECIPE, lambda progress: None)

    def cut(progress):
        if progress.step % 2 == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    stops = 0
    while not (tmp_path / "cut/base.json").is_file():
        with listening() as stop:
            try:
                build_base(corpus, tmp_path / "cut", RECIPE, cut, stop=stop)
            except Interrupted:
                stops += 1
    assert stops > 1
    assert weights(tmp_path / "cut") == weights(whole)


def test_another_recipe_or_corpus_is_refused_and_a_base_older_than_an_option_is_not(corpus, tmp_path):
    folder = build_base(corpus, tmp_path / "base", RECIPE, lambda progress: None)
    with pytest.raises(ResumeMismatch, match="another corpus or recipe"):
        build_base(corpus, folder, replace(RECIPE, seed=2), lambda progress: None)
    table = json.loads((folder / "base.json").read_text())
    del table["recipe"]["precision"]
    (folder / "base.json").write_text(json.dumps(table))
    assert build_base(corpus, folder, RECIPE, lambda progress: None) == folder
    (corpus / "train.txt").write_text("another text\n" * 50)
    with pytest.raises(ResumeMismatch):
        build_base(corpus, folder, RECIPE, lambda progress: None)


def test_a_folder_without_text_and_a_folder_at_work_are_refused(corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingData, match="no text there"):
        build_base(tmp_path / "empty", tmp_path / "base", RECIPE, lambda progress: None)
    with locked(tmp_path / "base/work"), pytest.raises(RunLocked):
        build_base(corpus, tmp_path / "base", RECIPE, lambda progress: None)
