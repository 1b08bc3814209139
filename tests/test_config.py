"""Recipes: what loads, what is refused, and that each refusal names the line and what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet import config
from lorikeet.base.errors import RecipeError

GOOD = """\
output_dir: runs/alpaca
model:    {path: smollm2-135m}
quant:    {kind: none}
adapter:  {kind: lora, r: 4, target_modules: all-linear}
data:     {train: [rows.json], validation: 0.1, format: auto, template: {kind: jinja}, max_length: 512}
train:    {num_train_epochs: 1, learning_rate: 2e-4, lr_scheduler_type: cosine, seed: 3}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("recipe.yaml")
    path.write_text(GOOD)
    return path


def refused(text: str, *overrides: str) -> RecipeError:
    path = Path("recipe.yaml")
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RecipeError) as caught:
        config.load(path, overrides)
    assert len(str(caught.value).splitlines()) <= 4
    return caught.value


def test_a_recipe_loads(recipe: Path) -> None:
    loaded = config.load(recipe)
    assert loaded.output_dir == Path("runs/alpaca")
    assert loaded.train.learning_rate == 2e-4
    assert loaded.adapter.model_dump()["r"] == 4
    assert loaded.data.validation == 0.1


def test_overrides_win_and_are_yaml(recipe: Path) -> None:
    overrides = ["train.learning_rate=1e-3", "adapter.target_modules=[q_proj, v_proj]", "adapter.bias=none"]
    loaded = config.load(recipe, [*overrides, "data.validation=null", "data.role_weights.user=0.5"])
    assert loaded.train.learning_rate == 1e-3
    assert loaded.adapter.model_dump()["target_modules"] == ["q_proj", "v_proj"]
    assert loaded.adapter.model_dump()["bias"] == "none"
    assert loaded.data.validation is None
    assert dict(loaded.data.role_weights) == {"user": 0.5}


@pytest.mark.parametrize(
    ("train", "override", "expected"),
    [
        ("num_train_epochs: 3", "train.max_steps=3", {"max_steps": 3}),
        ("max_steps: 3", "train.num_train_epochs=2", {"max_steps": None, "num_train_epochs": 2}),
        ("max_steps: 3", "train.num_train_epochs=2 train.max_steps=null", {"max_steps": None, "num_train_epochs": 2}),
        ("num_train_epochs: 3", "train.max_steps=null", {"max_steps": None, "num_train_epochs": 3}),
        ("warmup_ratio: 0.1", "train.warmup_steps=5", {"warmup_steps": 5, "warmup_ratio": 0}),
        ("warmup_steps: 5", "train.warmup_ratio=0.1", {"warmup_steps": None, "warmup_ratio": 0.1}),
        ("examples_per_step: 16", "train.per_device_train_batch_size=4", {"examples_per_step": 4}),
        (
            "per_device_train_batch_size: 2, gradient_accumulation_steps: 8",
            "train.examples_per_step=3",
            {"examples_per_step": 3, "gradient_accumulation_steps": None},
        ),
        (
            "per_device_train_batch_size: 2, gradient_accumulation_steps: 8",
            "train.gradient_accumulation_steps=4",
            {"examples_per_step": 8},
        ),
    ],
)
def test_the_command_line_says_a_thing_another_way_than_the_recipe(
    recipe: Path, train: str, override: str, expected: dict[str, float | None]
) -> None:
    recipe.write_text(
        "\n".join(line for line in GOOD.splitlines() if "train:  " not in line) + f"\ntrain: {{{train}}}\n"
    )
    loaded = config.load(recipe, override.split())
    config.check_effects(loaded)
    assert expected.items() <= loaded.train.model_dump().items()


def test_two_ways_on_the_command_line_are_an_error(recipe: Path) -> None:
    overrides = ["train.max_steps=3", "train.num_train_epochs=2"]
    with pytest.raises(RecipeError, match="max_steps decides"):
        config.check_effects(config.load(recipe, overrides))
    refused(GOOD, "train.examples_per_step=3", "train.gradient_accumulation_steps=2")


def test_a_kind_may_be_one_word_and_its_options_overridden(recipe: Path) -> None:
    recipe.write_text("output_dir: x\nmodel: {path: m}\nadapter: lora\ndata: {train: a.json}\ntrain:\n")
    loaded = config.load(recipe, ["adapter.r=3"])
    assert loaded.adapter.model_dump()["r"] == 3
    assert loaded.train == type(loaded.train)()  # `train:` with nothing behind it is its defaults
    recipe.write_text("output_dir: x\nmodel: {path: m}\nadapter: {r: 5}\ndata: {train: a.json}\n")
    assert config.load(recipe).adapter.model_dump()["r"] == 5


def test_saved_is_complete_and_loads_equal(recipe: Path) -> None:
    loaded = config.load(recipe)
    config.save(loaded, Path("saved.yaml"))
    assert config.load("saved.yaml") == loaded
    saved = yaml.safe_load(Path("saved.yaml").read_text())
    assert list(saved) == list(config.Recipe.model_fields)
    assert list(saved["train"]) == list(type(loaded.train).model_fields)
    assert config.written(config.load("saved.yaml")) == config.written(loaded)


def test_written_is_what_differs_from_the_defaults(recipe: Path) -> None:
    found = config.written(config.load(recipe, ["train.max_grad_norm=0.5"]))
    assert {"adapter.r", "train.max_grad_norm", "train.seed", "data.max_length", "model.path"} <= found
    assert not {"adapter.target_modules", "data.format.kind", "train.weight_decay"} & found


def test_paths_beside_the_recipe_come_first(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "rows.json").write_text("[]")
    (tmp_path / "held.json").write_text("[]")
    (folder / "r.yaml").write_text(GOOD.replace("validation: 0.1", "validation: [held.json]"))
    loaded = config.load("recipes/r.yaml")
    assert loaded.data.train == [str(folder / "rows.json")]
    assert loaded.data.validation == ["held.json"]  # not beside the recipe: the working directory's
    assert config.load("recipes/r.yaml", ["data.train=[rows.json]"]).data.train == ["rows.json"]


def swap(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


BAD = [
    (swap("r: 4", "r: 0"), "adapter.r: out of range", "0   (recipe.yaml:4)", "a whole number >= 1", "adapter.r=8"),
    (swap("r: 4", "rr: 4"), "adapter.rr: there is no such option", "recipe.yaml:4", "lora_alpha", "adapter.r=4"),
    (swap("r: 4", "r: 2.5"), "adapter.r: has the wrong type", "2.5   (recipe.yaml:4)", "whole number", "adapter.r=8"),
    (swap("r: 4", "r: true"), "adapter.r: has the wrong type", "true   (recipe.yaml:4)", "whole number", "adapter.r=8"),
    (swap("lora,", "loar,"), "adapter: there is no kind 'loar'", "recipe.yaml:4", "lora", "adapter.kind=lora"),
    (
        swap("2e-4", "fast"),
        "train.learning_rate: has the wrong type",
        "fast   (recipe.yaml:6)",
        "a number",
        "train.lea",
    ),
    (swap("2e-4", ".nan"), "train.learning_rate: out of range", ".nan   (recipe.yaml:6)", "a number", "train.lea"),
    (swap("cosine", "cosin"), "train.lr_scheduler_type: there is no kind", "cosin ", "linear", "type.kind=cosine"),
    (
        swap("seed: 3", "learnin_rate: 1"),
        "train.learnin_rate: there",
        "(recipe.yaml:6)",
        "seed",
        "train.learning_rate=1",
    ),
    (swap("max_length", "seed"), "data.seed: there is no such option", "(recipe.yaml:5)", "template", "train.seed=512"),
    (swap("train:    {", "trian:    {"), "there is no such section", "(recipe.yaml:6)", "train", "train"),
    (swap("[rows.json]", "7"), "data.train: has the wrong type", "7   (recipe.yaml:5)", "a list", ""),
    (swap("[rows.json]", "{a: 1}"), "data.train.a: there is no such option", "a   (recipe.yaml:5)", "path weight", ""),
    (swap("[rows.json]", "[rows.json, 3]"), "data.train.1: has the wrong type", "3   (recipe.yaml:5)", "texts", ""),
    (
        swap("{path: smollm2-135m}", "smollm2"),
        "model: has the wrong type",
        "smollm2   (recipe.yaml:2)",
        "path",
        "model=",
    ),
    (swap("0.1", "1.5"), "data.validation: must be a fraction", "1.5   (recipe.yaml:5)", "a number", ""),
    (swap("runs/alpaca", "''"), "output_dir: needs the name", "(recipe.yaml:1)", "a path", "output_dir=runs/first"),
    (
        swap("output_dir: runs/alpaca\n", ""),
        "output_dir: is missing",
        "nothing   (recipe.yaml)",
        "a path",
        "output_dir=",
    ),
    (GOOD + "train: {}\n", "train: written twice", "recipe.yaml:6   (again in recipe.yaml:7)", "once", "remove"),
    (swap("seed: 3", "seed: 3, seed: 4"), "train.seed: written twice", "(again in recipe.yaml:6)", "once", "remove"),
    (swap("seed: 3}", "seed: 3"), "this is not YAML", "recipe.yaml:", "key: value", ""),
    ("train:\n\tseed: 1\n", "this is not YAML", "(recipe.yaml:2)", "indent with spaces", ""),
    ("", "recipe.yaml is empty", "", "sections", "output_dir"),
    ("# nothing\n", "recipe.yaml is empty", "", "sections", "output_dir"),
    ("- a\n- b\n", "a recipe is a mapping", "a list   (recipe.yaml:1)", "section", ""),
    ("a: &x [*x]\n", "an alias (*) repeats itself", "recipe.yaml:1", "", ""),
    ("a: !!python/object:os.x {}\n", "this value cannot be read", "(recipe.yaml:1)", "without tags", ""),
    ("a: 1\n---\nb: 2\n", "this is not YAML", "(recipe.yaml:2)", "", ""),
    ("? [a]\n: 1\n", "a key must be a word", "a list   (recipe.yaml:1)", "key: value", ""),
    ("a: \x01\n", "this is not YAML: a control character", "#x0001   (recipe.yaml:1)", "", ""),
]


@pytest.mark.parametrize(("text", "what", "told", "allowed", "proposal"), BAD, ids=[case[1] for case in BAD])
def test_refused(recipe: Path, text: str, what: str, told: str, allowed: str, proposal: str) -> None:
    error = refused(text)
    assert what in error.what
    assert told in str(error.given or "")
    assert allowed in str(error.allowed or "")
    assert proposal in str(error.try_ or "")


OVERRIDES = [
    ("adapter.r=x", "adapter.r: has the wrong type", "adapter.r=8"),
    ("trian.seed=3", "trian: there is no such section", "train"),
    ("train.seeed=3", "train.seeed: there is no such option", "train.seed=3"),
    ("quant.bits=5", "quant.bits: there is no such option in kind none", "quant.kind=gptq"),
    ("quant.block_size=32", "quant.block_size: there is no such option in kind none", "quant.kind=fp4 or nf4"),
    ("adapter.kind=loar", "adapter: there is no kind 'loar'", "adapter.kind=lora"),
    ("quant={kind: gptq, bits: 5}", "quant.bits: is not one of the choices", "quant.bits=4"),
    ("train.max_steps=None", "train.max_steps: has the wrong type", "train.max_steps=null"),
    ("data.role_weights.usr=1", "data.role_weights.usr: is not one of the choices", "data.role_weights.user=1"),
    ("output_dir.x=1", "output_dir: has no options of its own", "output_dir=1"),
    ("adapter.target_modules=[q_proj", "this is not YAML", "quotes"),
    ("train.seed", "an override is key=value", "train.seed=..."),
    ("=3", "an override is key=value", ""),
]


@pytest.mark.parametrize(("override", "what", "proposal"), OVERRIDES)
def test_refused_overrides_name_the_command_line(recipe: Path, override: str, what: str, proposal: str) -> None:
    error = refused(GOOD, override)
    assert what in error.what
    assert "the command line" in str(error.given)
    assert proposal in str(error.try_ or "")


def test_another_kind_than_the_recipe_s_is_said_whole(recipe: Path) -> None:
    """The options that the recipe's kind has go with it."""
    error = refused(GOOD, "adapter.kind=ia3")
    assert error.what.startswith("adapter.r: there is no such option in kind ia3")
    assert error.try_ == "adapter=ia3, without the options of the recipe's kind"
    assert config.load(recipe, ["adapter=ia3"]).adapter.model_dump()["kind"] == "ia3"
    assert "adapter.kind=" in str(refused(GOOD, "adapter.kind=ia3", "adapter.r=3").try_)


def test_several_errors_show_the_first_and_count_the_rest(recipe: Path) -> None:
    text = swap("r: 4", "r: 0").replace("seed: 3", "seed: -1").replace("max_length: 512", "max_lenght: 512")
    error = refused(text)
    assert error.what == "data.max_lenght: there is no such option   (and 2 more)"  # unknown keys first
    assert refused(text.replace("max_lenght", "max_length")).what == "adapter.r: out of range   (and 1 more)"


def test_files_that_cannot_be_read(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no file 'nope\.yaml'"):
        config.load("nope.yaml")
    recipe.write_text("a: 1\n")
    for name, proposal in ((f"{recipe.name[:-5]}s.yaml", str(recipe.name)), ("deep/er/nope.yaml", "lorikeet init")):
        with pytest.raises(RecipeError) as error:
            config.load(name)
        assert str(error.value.try_).startswith(proposal)
    with pytest.raises(RecipeError, match="is a folder"):
        config.load(".")
    recipe.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(RecipeError, match=r"byte 0xff   \(recipe.yaml:2\)"):
        config.load(recipe)
    recipe.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())  # what Windows editors write
    assert config.load(recipe).train.seed == 3


def test_options_of_one_section() -> None:
    assert config.options("generate", []) == {}
    assert config.options("generate", ["generate.temperature=1"]) == {"temperature": 1.0}
    with pytest.raises(RecipeError, match=r"generate.temperature: out of range\n.*the command line"):
        config.options("generate", ["generate.temperature=-1"])
    with pytest.raises(RecipeError, match="train: has no effect here"):
        config.options("generate", ["train.seed=1"])


@pytest.mark.parametrize(
    ("override", "allowed", "proposal"),
    [
        ("quant.bits=5", "2 3 4 8", "quant.bits=4"),
        ("quant.group_size=0", "above 0", "quant.group_size=128"),
        ("quant.block_size=32", "bits", "quant.kind=fp4 or nf4"),
        ("quant.group=32", "group_size", "quant.group_size=32"),
    ],
)
def test_options_of_a_kind_that_the_command_names(override: str, allowed: str, proposal: str) -> None:
    with pytest.raises(RecipeError) as caught:
        config.options("quant", [override], kind="gptq")
    message = str(caught.value)
    assert allowed in message and proposal in str(caught.value.try_)
    assert len(message.splitlines()) == 4


def test_late_errors_get_their_line(recipe: Path) -> None:
    error = RecipeError("adapter.target_modules: no layer is named 'q_prj'", given="[q_prj]", try_="x")
    assert "[q_prj]   (recipe.yaml:4)" in str(config.located(error, config.tree(recipe)))
    elsewhere = RecipeError("something: else", given="y")
    assert config.located(elsewhere, config.tree(recipe)) is elsewhere


def test_the_json_schema_knows_kinds_and_options() -> None:
    schema = json.loads(json.dumps(config.json_schema()))
    assert set(config.Recipe.model_fields) == set(schema["properties"])
    assert schema["$defs"]["Lora"]["properties"]["r"]["minimum"] == 1
    assert schema["additionalProperties"] is False


def test_a_mapping_in_memory_reads_as_a_file_would(recipe: Path) -> None:
    values = yaml.safe_load(GOOD)
    assert config.parse(values, ["train.learning_rate=2e-4"]) == config.load(recipe)
    values["train"]["seed"] = -1
    with pytest.raises(RecipeError, match=r"train.seed: out of range\n.*-1   \(the recipe\)"):
        config.parse(values, ["train.learning_rate=2e-4"])


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["a.b", "train.seed", "adapter", "data.train", "x"]), st.text(max_size=20)))
def test_any_override_is_read_or_refused_never_a_crash(overrides: dict[str, str]) -> None:
    try:
        config.parse(yaml.safe_load(GOOD), [f"{key}={value}" for key, value in overrides.items()])
    except RecipeError as error:
        assert len(str(error).split("\n")) <= 4


def test_a_saved_recipe_has_someones_own_kinds_with_their_options(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from lorikeet.data.formats.alpaca import Alpaca as Theirs\n"
        "class Own(Theirs):\n    kind: str = 'own'\n    extra: int = 3\n"
    )
    said = {"kind": str(own), "extra": 5}
    data = {"train": [{"path": "a", "format": said}], "format": {"kind": "preference", "context": said}}
    recipe = config.parse({"model": {"path": "m"}, "data": data, "output_dir": "o"})
    config.save(recipe, tmp_path / "recipe.yaml")
    again = config.load(tmp_path / "recipe.yaml")
    assert again.model_dump() == recipe.model_dump()
    assert again.data.format.context.extra == 5 and again.data.train[0].format.kind == str(own)


def test_a_recipe_of_before_dequantize_had_its_name_is_read(tmp_path: Path) -> None:
    """Saved recipes hold every default."""
    path = tmp_path / "recipe.yaml"
    path.write_text("output_dir: r\nmodel: {path: m}\ndata: {train: [a.json]}\nquant: {kind: none, dequantise: true}\n")
    assert config.load(path).quant.dequantize is True
    assert "dequantise" not in config.load(path).model_dump_json()
    with pytest.raises(RecipeError, match="dequantise"):
        config.load(path, ["quant.dequantize=false"])
