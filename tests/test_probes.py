"""Probes: a bundle whose weights are not those that were published answers its own probes otherwise, and that is noticed."""

import pytest

from mtcore.bundle import BundledTask, BundleManifest, read_bundle, write_bundle
from mtcore.contracts import Predictor
from mtcore.errors import ModelError
from mtcore.probes import EACH, disagreements, read_probes, write_probes
from mtcore.testing.toys import toy_spec
from mtcore.types import Prediction, Prepared, TaskError


class Sure(Predictor):
    """Answers the first label with a fixed probability, free text with its own text, and nothing to those in `broken`."""

    def __init__(self, *outputs, sure=0.9, text="yes", broken=()):
        self.specs = {f"toys/{output}": toy_spec(output) for output in outputs}
        self.sure, self.text, self.broken = sure, text, broken

    @property
    def tasks(self):
        return self.specs

    def prepare(self, request):
        return Prepared(request, cost=1, flags={}, payload=None)

    def predict(self, prepared):
        return [{name: self.answer(name) for name in p.request.tasks} for p in prepared]

    def answer(self, name):
        spec = self.specs[name]
        if name in self.broken:
            return TaskError(name, "no idea")
        if spec.output == "generation":
            return Prediction(name, (self.text,))
        first, *others = spec.labels
        return Prediction(name, first, {first: self.sure, **dict.fromkeys(others, (1 - self.sure) / len(others))})


@pytest.fixture
def bundle(tmp_path):
    tasks = {f"toys/{output}": BundledTask(spec=toy_spec(output)) for output in ("binary", "generation")}
    manifest = BundleManifest(method="text2text", options={}, tasks=tasks, base="toy", base_digest="")
    folder = write_bundle(tmp_path / "bundle", manifest, lambda folder: None)
    write_probes(folder, Sure("binary", "generation"))
    return folder


def test_a_bundle_answers_its_own_probes_as_it_did(bundle):
    probes = read_probes(bundle)
    assert [p.task for p in probes] == ["toys/binary"] * EACH + ["toys/generation"] * EACH
    assert len({tuple(p.fields.items()) for p in probes}) == 2 * EACH
    assert disagreements(Sure("binary", "generation"), probes) == []


def test_a_little_noise_is_no_disagreement_and_another_model_is_one(bundle):
    assert disagreements(Sure("binary", "generation", sure=0.91), read_probes(bundle)) == []
    found = disagreements(Sure("binary", "generation", sure=0.6), read_probes(bundle))
    assert len(found) == EACH
    assert found[0].startswith("toys/binary: ")


def test_free_text_may_differ_and_must_come(bundle):
    assert disagreements(Sure("binary", "generation", text="no"), read_probes(bundle)) == []
    assert "no idea" in disagreements(Sure("binary", "generation", broken=["toys/generation"]), read_probes(bundle))[0]


def test_a_task_that_is_gone_is_a_disagreement(bundle):
    assert "does not answer" in disagreements(Sure("binary"), read_probes(bundle))[0]


def test_a_bundle_that_cannot_answer_its_probes_is_not_given_any(tmp_path, bundle):
    with pytest.raises(ModelError, match="no idea"):
        write_probes(bundle, Sure("binary", broken=["toys/binary"]))


def test_probes_are_files_that_the_manifest_knows(bundle):
    assert "probes.json" in read_bundle(bundle).files
    (bundle / "probes.json").write_text("{}")
    with pytest.raises(ModelError, match=r"probes\.json"):
        read_bundle(bundle)


def test_a_bundle_without_probes_has_none(tmp_path):
    assert read_probes(tmp_path) == ()


def test_the_version_of_a_bundle_is_that_of_what_it_answers_with():
    manifest = BundleManifest(method="text2text", options={}, tasks={}, base="toy", base_digest="", files={"model.safetensors": "0"})
    with_card = manifest.model_copy(update={"files": {"model.safetensors": "0", "README.md": "1"}})
    assert manifest.version == with_card.version != manifest.model_copy(update={"files": {"model.safetensors": "2"}}).version


def test_whoever_may_read_the_manifest_may_read_the_weights(tmp_path):
    def fill(folder):
        (folder / "model.safetensors").touch(mode=0o600)

    folder = write_bundle(tmp_path / "bundle", BundleManifest(method="text2text", options={}, tasks={}, base="toy", base_digest=""), fill)
    assert (folder / "model.safetensors").stat().st_mode == (folder / "mtcore.json").stat().st_mode
