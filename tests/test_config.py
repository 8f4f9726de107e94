"""The run file: strict, short, and helpful where it is wrong."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtcore.config import RunConfig, load_run, merge, nearest
from mtcore.errors import ConfigError, UnknownName
from mtcore.plugins import load_plugins
from mtcore.types import FilterUse, SamplerUse, SchedulerUse


@pytest.fixture(scope="module")
def registry():
    return load_plugins(environment="")


def run_file(folder: Path, text: str = "", name: str = "toy.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def only(path=None, *, settings=(), data=None) -> RunConfig:
    """The one variant of a run."""
    (config,) = load_run(path, settings=settings, data=data).variants.values()
    return config


def variants(folder, text, *, settings=()):
    return load_run(run_file(folder, text), settings=settings).variants


# --- what is not usable is named ------------------------------------------------------------------------------------------------------


def test_without_a_run_file_there_is_one_variant_of_defaults():
    run = load_run(None)
    assert run.name == "run"
    assert run.variants == {"": RunConfig()}


def test_a_run_is_named_after_its_file(tmp_path):
    assert load_run(run_file(tmp_path, name="clue-cpu.toml")).name == "clue-cpu"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle = 'tiny'", r"toy\.toml: unknown key 'modle'; did you mean 'model'"),
        ("max_step = 5", "unknown key 'max_step'; did you mean 'max_steps'"),
        (
            "[rows]\nfractoin = 0.1",
            r"unknown key 'rows\.fractoin'; did you mean 'fraction'\? Known: fraction, validation, bad, allow_leaks",
        ),
        ("[plugins]\nallows = []", r"unknown key 'plugins\.allows'; did you mean 'allow'"),
        ("zzz = 1", r"unknown key 'zzz'\. Known: model, tasks, data, .*"),
        ("[variants.ours]\nmodle = 'tiny'", r"toy\.toml \[variants\.ours\]: unknown key 'modle'"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        variants(tmp_path, text)


def test_every_wrong_key_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        variants(tmp_path, "modle = 'tiny'\nseeds = []\nmax_steps = 0")
    assert all(part in str(caught.value) for part in ("modle", "seeds", "max_steps: Input should be greater than 0 (given: 0)"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_steps = '100'", r"max_steps: Input should be a valid integer \(given: '100'\)"),
        ("max_steps = 100.0", r"max_steps: Input should be a valid integer \(given: 100\.0\)"),
        ("max_steps = true", "max_steps: Input should be a valid integer"),
        ("seeds = 1", r"seeds: Input should be a valid array \(given: 1\)"),
        ("seeds = ['1']", r"seeds\.0: Input should be a valid integer"),
        ("keep_reference_weights = 1", "keep_reference_weights: Input should be a valid boolean"),
        ("model = 7", r"model: Input should be a valid string \(given: 7\)"),
        ("data = 7", r"data: Input should be a valid string \(given: 7\)"),
        ("[rows]\nfraction = '0.1'", r"rows\.fraction: Input should be a valid number"),
        ("[rows]\nfraction = nan", r"rows\.fraction"),
        ("[rows]\nfraction = 1.5", r"rows\.fraction: Input should be less than or equal to 1"),
        ("[resource]\n'clue/tnews' = 'big'", r"resource\.clue/tnews: Input should be 'high' or 'low' \(given: 'big'\)"),
        ("filter = 'none'", r"filter: .* \(given: 'none'\)"),
        ("observers = [{ every = 5 }]", r"observers\.0\.use: Field required"),
    ],
)
def test_types_are_strict(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        variants(tmp_path, text)


def test_a_whole_number_does_for_a_number_and_an_array_for_several(tmp_path):
    config = only(run_file(tmp_path, "seeds = [3, 1]\n[rows]\nfraction = 1\nbad = 0"))
    assert config.rows.fraction == 1.0
    assert isinstance(config.rows.fraction, float)
    assert config.seeds == (3, 1)


def test_a_missing_file_names_the_run_files_beside_it(tmp_path):
    run_file(tmp_path, name="one.toml")
    run_file(tmp_path, name="two.toml")
    with pytest.raises(ConfigError, match=r"tow\.toml: no such run file\. TOML files beside it: .*one\.toml, .*two\.toml\."):
        load_run(tmp_path / "tow.toml")
    with pytest.raises(ConfigError, match=r"beside it: none\."):
        load_run(tmp_path / "nowhere" / "tow.toml")


def test_a_folder_is_no_run_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read as a run file"):
        load_run(tmp_path)


@pytest.mark.parametrize("content", [b"model = ", b"model = 'a'\nmodel = 'b'", b"\xff\xfe", "model = “tiny”".encode()])
def test_what_is_not_toml_says_so(tmp_path, content):
    (tmp_path / "toy.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"toy\.toml is not TOML: "):
        load_run(tmp_path / "toy.toml")


@pytest.mark.parametrize("name", ["../up", ".hidden", "a b", "a/b", "", "ä", "-x"])
def test_a_variant_whose_name_makes_no_folder_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="names a folder: use letters"):
        variants(tmp_path, f"[variants.'{name}']\nmax_steps = 1")


@pytest.mark.parametrize("text", ["variants = 3", "[variants]\nours = 3"])
def test_variants_must_be_tables(tmp_path, text):
    with pytest.raises(ConfigError, match="must be tables that override keys"):
        variants(tmp_path, text)


# --- variants -------------------------------------------------------------------------------------------------------------------------

BASE = """
max_steps = 100
scheduler = { use = "two-stage", learning_rate = 1e-3, stage2 = { use = "temperature", tau = 2.0, cap = 2000 } }
[rows]
fraction = 0.5
validation = 10
"""


def test_each_variant_is_the_file_with_its_own_changes(tmp_path):
    found = variants(tmp_path, BASE + "[variants.a]\n[variants.b]\nmax_steps = 7\nrows = { fraction = 0.1 }")
    assert list(found) == ["a", "b"]
    assert (found["a"].max_steps, found["b"].max_steps) == (100, 7)
    assert (found["b"].rows.fraction, found["b"].rows.validation) == (0.1, 10)
    assert found["a"].rows.fraction == 0.5


def test_a_variant_may_change_one_option_of_a_component_deep_inside(tmp_path):
    found = variants(tmp_path, BASE + "[variants.hot]\nscheduler = { stage2 = { tau = 3.33 } }")
    assert found["hot"].scheduler.options == {"learning_rate": 1e-3, "stage2": {"use": "temperature", "tau": 3.33, "cap": 2000}}


def test_a_table_that_names_another_component_replaces_the_old_one_whole(tmp_path):
    found = variants(tmp_path, BASE + "[variants.flat]\nscheduler = { use = 'mixture', epochs = 3 }")
    assert found["flat"].scheduler == SchedulerUse.model_validate({"use": "mixture", "epochs": 3})
    found = variants(tmp_path, BASE + "[variants.flat]\nscheduler.stage2 = { use = 'class-balanced' }")
    assert found["flat"].scheduler.options["stage2"] == {"use": "class-balanced"}


def test_a_table_that_names_the_same_component_changes_its_options(tmp_path):
    found = variants(tmp_path, BASE + "[variants.long]\nscheduler = { use = 'two-stage', stage2_epochs = 20 }")
    assert found["long"].scheduler.options["learning_rate"] == 1e-3
    assert found["long"].scheduler.options["stage2_epochs"] == 20


def test_a_component_that_the_file_does_not_name_is_the_default_one(tmp_path, registry):
    found = variants(tmp_path, "[variants.long]\nscheduler = { stage2_epochs = 20 }\n[variants.plain]")
    assert found["long"].scheduler.use == found["plain"].scheduler.use == "two-stage"
    assert registry.scheduler(found["long"].scheduler).config.stage2_epochs == 20


def test_options_of_a_component_inside_a_component_may_be_set_without_naming_it(tmp_path, registry):
    for config in (
        variants(tmp_path, "[variants.hot]\nscheduler.stage2.tau = 3.33")["hot"],
        only(settings=["scheduler.stage2.tau=3.33"]),
    ):
        stage2 = registry.scheduler(config.scheduler).config.stage2
        assert stage2 == SamplerUse.model_validate({"use": "temperature", "tau": 3.33, "cap": 20000})


def test_a_component_that_is_named_has_its_own_defaults_and_not_those_of_the_place_where_it_stands(registry):
    config = only(settings=['scheduler.stage2={use="temperature", tau=3.33}'])
    assert registry.sampler(registry.scheduler(config.scheduler).config.stage2).config.cap is None


@settings(deadline=None)
@given(
    st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3)).filter(
        lambda v: isinstance(v, dict)
    )
)
def test_merging_a_table_with_itself_or_with_nothing_changes_nothing(table):
    assert merge(table, table) == merge(table, {}) == merge({}, table) == table


def test_merging_leaves_both_tables_as_they_were():
    old, new = {"a": {"x": 1}}, {"a": {"y": 2}, "b": {"z": 3}}
    merged = merge(old, new)
    merged["a"]["x"] = merged["b"]["z"] = 0
    assert (old, new) == ({"a": {"x": 1}}, {"a": {"y": 2}, "b": {"z": 3}})


# --- settings on the command line -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("max_steps=5", ("max_steps",), 5),
        ("rows.fraction=0.25", ("rows", "fraction"), 0.25),
        ("keep_reference_weights=true", ("keep_reference_weights",), True),
        ("seeds=[1, 2, 3]", ("seeds",), (1, 2, 3)),
        ('tasks=["clue/*", "cmrc/cmrc2018"]', ("tasks",), ("clue/*", "cmrc/cmrc2018")),
        ("model=Qwen/Qwen2-7B", ("model",), "Qwen/Qwen2-7B"),
        ('model="7"', ("model",), "7"),
        ("model=a=b", ("model",), "a=b"),
        ("model=", ("model",), ""),
        ("resource.clue/tnews=high", ("resource",), {"clue/tnews": "high"}),
        ("filter.use=none", ("filter",), FilterUse(use="none")),
        ("plugins.deny=['clue']", ("plugins", "deny"), ("clue",)),
    ],
)
def test_a_setting_is_a_path_and_toml_or_plain_text(setting, path, value):
    found = only(settings=[setting])
    for part in path:
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize("setting", ["max_steps", "=5", "rows.=5", "rows..fraction=5", ".rows=1"])
def test_a_setting_without_a_path_or_a_value_says_how_to_write_one(setting):
    with pytest.raises(ConfigError, match="write key=value, as in --set"):
        only(settings=[setting])


def test_settings_reach_every_variant_and_win_over_it(tmp_path):
    found = variants(tmp_path, BASE + "[variants.a]\n[variants.b]\nmax_steps = 7", settings=["max_steps=3", "scheduler.stage2.tau=5"])
    assert [config.max_steps for config in found.values()] == [3, 3]
    assert [config.scheduler.options["stage2"]["tau"] for config in found.values()] == [5, 5]
    assert found["a"].scheduler.options["learning_rate"] == 1e-3


def test_settings_apply_one_after_the_other(tmp_path):
    path = run_file(tmp_path, BASE)
    # naming the component that is there anyway drops nothing; another one starts anew; the last word counts
    same = only(path, settings=["scheduler.stage2.tau=5", "scheduler.use=two-stage"])
    assert same.scheduler.options["stage2"]["tau"] == 5
    assert same.scheduler.options["learning_rate"] == 1e-3
    other = only(path, settings=["scheduler.learning_rate=1", "scheduler.use=mixture", "scheduler.epochs=2"])
    assert other.scheduler == SchedulerUse.model_validate({"use": "mixture", "epochs": 2})
    assert only(path, settings=["max_steps=1", "max_steps=2"]).max_steps == 2


def test_an_unknown_key_in_a_setting_is_refused_like_one_in_the_file():
    with pytest.raises(ConfigError, match=r"the command line: unknown key 'max_step'; did you mean 'max_steps'"):
        only(settings=["max_step=3"])


# --- where the data is ----------------------------------------------------------------------------------------------------------------


def test_data_in_a_run_file_is_relative_to_the_file(tmp_path):
    assert only(run_file(tmp_path, "data = 'rows'")).data == str(tmp_path / "rows")
    assert only(run_file(tmp_path, "data = '/elsewhere'")).data == "/elsewhere"
    assert variants(tmp_path, "[variants.a]\ndata = 'rows'")["a"].data == str(tmp_path / "rows")


def test_a_model_that_begins_with_a_dot_is_relative_to_the_file_and_no_other_is(tmp_path):
    for model, read in (("../base", str(tmp_path.parent / "base")), ("Qwen/Qwen2-7B", "Qwen/Qwen2-7B"), ("tiny", "tiny")):
        path = tmp_path / "run.toml"
        path.write_text(f'model = "{model}"\n')
        assert load_run(path).variants[""].model == read


def test_data_set_on_the_command_line_is_relative_to_where_it_is_typed(tmp_path):
    assert only(run_file(tmp_path, "data = 'rows'"), settings=["data=mine"]).data == "mine"
    assert only(settings=["data=mine"]).data == "mine"


def test_the_default_folder_is_used_where_nothing_names_one(tmp_path):
    assert only(run_file(tmp_path), data="common").data == "common"
    assert only(run_file(tmp_path, "data = 'rows'"), data="common").data == str(tmp_path / "rows")
    assert only(data="common", settings=["data=mine"]).data == "mine"
    assert only().data is None


# --- options belong to components -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0, -1.5])
def test_a_temperature_of_zero_or_less_is_named_with_its_value(registry, tau):
    use = SamplerUse.model_validate({"use": "temperature", "tau": tau})
    with pytest.raises(ConfigError, match=rf"sampler 'temperature': tau: Input should be greater than 0 \(given: {tau}\)"):
        registry.build(use)


def test_a_wrong_option_deep_inside_a_scheduler_is_found_when_the_scheduler_is_built(registry):
    config = only(settings=["scheduler.stage2.tau=0"])
    with pytest.raises(ConfigError, match="sampler 'temperature': tau: Input should be greater than 0"):
        registry.build(config.scheduler)
    config = only(settings=["scheduler.stage2.use=temprature"])
    with pytest.raises(UnknownName, match="no sampler is called 'temprature'; did you mean 'temperature'"):
        registry.build(config.scheduler)


def test_an_unknown_option_names_the_component_and_the_nearest_known_one(registry):
    config = only(settings=["scheduler.stage2_epoch=3"])
    with pytest.raises(ConfigError, match="scheduler 'two-stage': unknown key 'stage2_epoch'; did you mean 'stage2_epochs'"):
        registry.build(config.scheduler)


def test_options_are_as_strict_as_the_run_file(registry):
    assert registry.build(SamplerUse.model_validate({"use": "temperature", "tau": 3})).config.tau == 3.0
    for wrong in ("3", True, None, [3]):
        with pytest.raises(ConfigError, match="tau: Input should be a valid number"):
            registry.build(SamplerUse.model_validate({"use": "temperature", "tau": wrong}))


def test_everything_that_is_the_default_can_be_built(registry):
    config = RunConfig()
    for use in (config.filter, config.method, config.scheduler, config.reference, config.launcher, *config.observers):
        assert registry.build(use).name == use.use


def test_a_name_near_no_other_gets_no_guess():
    assert nearest("tau", ["tau", "cap"]) == "; did you mean 'tau'?"
    assert nearest("zzz", ["tau", "cap"]) == "."
