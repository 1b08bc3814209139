"""transformers as a source: what is chosen, what is refused, names of checkpoints, storage, plans, padded batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.adapters._merge import merged_tensors
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import LorikeetError, MissingExtra, ModelError
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pack import pack_row
from lorikeet.models._hf_model import TransformersModel
from lorikeet.models.decoder import Decoder
from lorikeet.models.huggingface import Transformers
from lorikeet.models.load import Choice, identify, load
from lorikeet.plan.simulate import Network, measure, simulate
from lorikeet.quant.int8 import Int8
from lorikeet.quant.nf4 import NF4
from lorikeet.quant.none import NoQuant
from lorikeet.train.options import TrainOptions
from parity import hf_models, tiny
from parity.hf_models import IDS, LLAMA, ours, theirs
from parity.test_families import (
    assert_a_shared_prefix_equals_each_conversation_alone,
    assert_cached_decoding_equals_reading_anew,
)
from parity.test_transformers import TOLERANCE, difference, logits
from parity.test_transformers_source import examples

transformers = pytest.importorskip("transformers")


def saved(folder: Path, case: str = "gpt2") -> Any:
    model = theirs(case)
    model.save_pretrained(folder)
    return model


def test_a_native_family_goes_first_and_transformers_serves_the_rest(tmp_path: Path) -> None:
    saved(tmp_path / "gpt2")
    saved(tmp_path / "phi3", "phi3")
    known, unknown = open_checkpoint(tmp_path / "phi3"), open_checkpoint(tmp_path / "gpt2")
    assert identify(known)[0].kind == "phi3"
    assert identify(known, Choice(source="transformers"))[0].kind == "transformers"
    assert identify(unknown)[0].kind == "transformers"
    with pytest.raises(ModelError, match="unknown kind of network"):
        identify(unknown, Choice(source="native"))


@pytest.mark.parametrize("case", ["phi3", "gemma2", "mixtral", "qwen3_moe"])
def test_both_sources_give_the_same_states_names_and_gradients(case: str, tmp_path: Path) -> None:
    saved(tmp_path, case)
    found = []
    for source in ("native", "transformers"):
        choice = Choice(source=source)  # type: ignore[arg-type]
        checkpoint = open_checkpoint(tmp_path)
        model = load(checkpoint, NoQuant(), dtype=torch.float32, device=tiny.CPU, family=choice)
        assert isinstance(model, Decoder if source == "native" else TransformersModel)
        parameters = dict(sorted(tiny.with_lora(model, r=2).items()))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # by name: the two have their modules in another order
            for parameter in parameters.values():
                parameter.normal_(0, 0.3, generator=generator)
        found.append((model, tiny.loss_and_gradients(model, parameters, [pack_row(examples())])))
    (native, one), (other, two) = found
    tiny.assert_same(one, two, rtol=1e-4)
    assert {slot.name: slot.shape for slot in native.slots()} == {slot.name: slot.shape for slot in other.slots()}


def test_without_transformers_the_pip_line_is_told(tmp_path: Path) -> None:
    """In a process of its own, in which the package cannot be imported."""
    saved(tmp_path)
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'transformers': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from pathlib import Path\n"
        "from lorikeet.checkpoints.open import open_checkpoint\n"
        "from lorikeet.models.load import identify\n"
        "identify(open_checkpoint(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode != 0 and "pip install 'lorikeet-llm[hf]'" in done.stderr


def test_asked_for_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorikeet.models import huggingface

    saved(tmp_path)
    huggingface._imported.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"source=transformers needs the package") as caught:
        identify(open_checkpoint(tmp_path), Choice(source="transformers"))
    assert "lorikeet-llm[hf]" in str(caught.value)
    monkeypatch.undo()
    huggingface._imported.cache_clear()


def changed_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


OWN_CODE = """
from transformers import GPT2Config, GPT2LMHeadModel
class MyConfig(GPT2Config):
    model_type = "my-own-net"
class MyModel(GPT2LMHeadModel):
    config_class = MyConfig
"""


def test_code_of_its_own_runs_only_when_asked(tmp_path: Path) -> None:
    reference = saved(tmp_path)
    (tmp_path / "own.py").write_text(OWN_CODE)
    own = {"AutoConfig": "own.MyConfig", "AutoModelForCausalLM": "own.MyModel"}
    changed_config(tmp_path, model_type="my-own-net", auto_map=own)
    with pytest.raises(ModelError, match="brings its own code") as caught:
        identify(open_checkpoint(tmp_path))
    assert "model.trust_remote_code=true" in str(caught.value)
    choice = Choice(trust_remote_code=True)
    model = load(open_checkpoint(tmp_path), NoQuant(), dtype=torch.float32, device=tiny.CPU, family=choice)
    assert isinstance(model, TransformersModel)
    assert difference(reference, model) <= TOLERANCE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "never-heard-of"}, "unknown kind of network"),
        ({"model_type": "t5"}, "unknown kind of network"),  # no causal language model
        ({"model_type": None}, "unknown kind of network"),
        ({"n_head": 5}, "cannot build a network from config.json"),  # 64 / 5
        ({"n_layer": 3}, "h.2."),  # weights of two
        ({"n_embd": 32}, "another shape"),
        ({"vocab_size": 50}, "another shape"),
        ({"activation_function": "no-such"}, "cannot build a network from config.json"),
        ({"n_layer": "two"}, "cannot build a network from config.json"),
    ],
)
def test_bad_settings(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(tmp_path)
    changed_config(tmp_path, **changes)
    with pytest.raises(LorikeetError) as caught:
        load(open_checkpoint(tmp_path), NoQuant(), dtype=torch.float32, device=tiny.CPU)
    assert said in str(caught.value)


@pytest.mark.parametrize("case", ["gpt2", "bloom"])
def test_checkpoints_without_the_prefix_are_read(case: str, tmp_path: Path) -> None:
    """As GPT-2 and Bloom were published."""
    reference = theirs(case)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in reference.state_dict().items()}
    hf.save(tmp_path, reference.config.to_dict(), tensors.items())
    assert difference(reference, ours(tmp_path)) <= TOLERANCE


def test_stacked_experts_are_read_too(tmp_path: Path) -> None:
    reference = theirs("mixtral")
    reference.save_pretrained(tmp_path, save_original_format=False)
    assert any(name.endswith("gate_up_proj") for name in open_checkpoint(tmp_path).names())
    assert difference(reference, ours(tmp_path)) <= TOLERANCE


@pytest.mark.parametrize("quant", [NF4(), Int8()], ids=["nf4", "int8"])
@pytest.mark.parametrize("case", ["gpt2", "bloom", "mixtral"])
def test_quantised_linears(case: str, quant: Any, tmp_path: Path) -> None:
    """The network computes with what its linears say they hold: transformers, given those weights, agrees."""
    reference = saved(tmp_path / "base", case)
    model = ours(tmp_path / "base", quant)
    exact = difference(reference, model)
    (tmp_path / "dense").mkdir()
    hf.save(tmp_path / "dense", model.shape.config, model.tensors())
    rounded = type(reference).from_pretrained(tmp_path / "dense").eval()
    assert difference(rounded, model) <= 10 * TOLERANCE < exact
    parameters = tiny.with_lora(model, r=2)
    tiny.loss_and_gradients(model, parameters, [pack_row(examples())])


MIXERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", IDS | {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 4}),
    "lfm2, convolutions and attention": ("Lfm2", LLAMA | {"layer_types": ["conv", "full_attention"]}),
    "gpt-oss, sinks": (
        "GptOss",
        LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8},
    ),
}


@pytest.mark.parametrize("case", MIXERS)
def test_networks_that_cannot_take_a_view_compute_whole_texts(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hf_models.CASES, case, MIXERS[case])
    reference = saved(tmp_path / "base", case)
    model = ours(tmp_path / "base")
    assert model.way == "padded"
    assert difference(reference, model) <= TOLERANCE
    with torch.no_grad():
        assert_a_shared_prefix_equals_each_conversation_alone(model)
        assert_cached_decoding_equals_reading_anew(model)
    parameters = tiny.with_lora(model, r=2)
    kept, twice = (
        tiny.loss_and_gradients(model, parameters, [pack_row(examples())], checkpointing=asked)
        for asked in (False, True)
    )
    tiny.assert_same(kept, twice, rtol=1e-5)
    (tmp_path / "merged").mkdir()
    hf.save(tmp_path / "merged", model.shape.config, merged_tensors(model, Lora(r=2), torch.float32))
    again = type(reference).from_pretrained(tmp_path / "merged").eval()
    assert difference(again, model) <= TOLERANCE


def with_hook(folder: Path, name: str, hook: str) -> Choice:
    """A GPT-2 with code of its own, which does something behind its first norm."""
    saved(folder)
    init = "    def __init__(self, config):\n        super().__init__(config)\n"
    added = f"        self.transformer.h[0].ln_1.register_forward_hook(lambda m, x, y: {hook})\n"
    (folder / "own.py").write_text(OWN_CODE.replace("my-own-net", name) + init + added)
    own = {"AutoConfig": "own.MyConfig", "AutoModelForCausalLM": "own.MyModel"}
    changed_config(folder, model_type=name, auto_map=own)
    return Choice(trust_remote_code=True)


def test_a_network_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    choice = with_hook(tmp_path, "my-all-seeing-net", "y + y.mean(1, keepdim=True)")
    with pytest.raises(ModelError, match="tokens see those after them"):
        load(open_checkpoint(tmp_path), NoQuant(), dtype=torch.float32, device=tiny.CPU, family=choice)


@torch.no_grad()
def test_a_long_row_of_dense_attention_is_computed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorikeet.models import _hf_model
    from lorikeet.ops.attention import PackedView

    saved(tmp_path, "bloom")
    model = ours(tmp_path)
    assert model.way == "mask"
    row = pack_row(examples() + examples(1))
    view = PackedView(row.visible_until, row.positions)
    whole = model.hidden(row.tokens, row.positions, view)
    monkeypatch.setattr(_hf_model, "MASKED", 30)
    parts = list(_hf_model._apart(view, row.tokens, row.positions))
    assert len(parts) > 1 and sum(len(part[0]) for part in parts) == len(row.tokens)
    torch.testing.assert_close(model.hidden(row.tokens, row.positions, view), whole, rtol=0, atol=TOLERANCE)


def test_a_leak_between_texts_is_found_when_weights_are_there(tmp_path: Path) -> None:
    """A network that asks for attention in every layer and mixes tokens beside it: only numbers show that."""
    choice = with_hook(tmp_path, "my-leaky-net", "y + 0.2 * y.cumsum(1)")
    model = load(open_checkpoint(tmp_path), NoQuant(), dtype=torch.float32, device=tiny.CPU, family=choice)
    assert isinstance(model, TransformersModel) and model.way == "padded"
    assert difference(theirs("gpt2"), model) > 100 * TOLERANCE  # it is another network than GPT-2
    with torch.no_grad():
        assert_a_shared_prefix_equals_each_conversation_alone(model)


@pytest.mark.parametrize("case", ["gpt2", "bloom", "falcon, alibi", "mixtral", "deepseek_v3"])
def test_a_step_without_numbers_takes_what_a_real_one_takes(case: str, tmp_path: Path) -> None:
    saved(tmp_path, case)
    checkpoint = open_checkpoint(tmp_path)
    family, spec = identify(checkpoint, Choice(source="transformers"))
    network = Network(family, spec, NoQuant(), torch.float32)
    batch = pack_row([tiny.example(list(range(1, 90)))])
    options = TrainOptions()
    predicted = simulate(network, Lora(r=2), options, [batch])
    model = ours(tmp_path)
    adapter = Lora(r=2)
    adapter.attach(model, seed=0)
    measured = measure(model, adapter.parameters(model), options, [batch])
    assert predicted.trainable == measured.trainable
    assert predicted.by_kind["weights"] == measured.by_kind["weights"]
    assert predicted.peak_bytes == pytest.approx(
        measured.peak_bytes, rel=0.1 if "mix" in case or "deep" in case else 0.02
    )


@torch.no_grad()
def test_a_long_text_beside_a_short_one_changes_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """longrope and dynamic ropes turn with the length of a text: each has its own, whatever was computed before."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    settings = LLAMA | {"max_position_embeddings": 32, "rope_parameters": rope}
    monkeypatch.setitem(hf_models.CASES, "dynamic", ("Llama", settings))
    saved(tmp_path, "dynamic")
    model = ours(tmp_path)
    assert model.way == "interface" and model.shares_within == 32
    texts = [torch.arange(3, 43), torch.arange(5, 25), torch.arange(7, 67)]
    fresh = [transformers.LlamaForCausalLM.from_pretrained(tmp_path)(text[None]).logits[0] for text in texts]
    row = pack_row([tiny.example(text.tolist()) for text in texts], share=False)
    from lorikeet.ops.attention import PackedView

    packed = model.hidden(row.tokens, row.positions, PackedView(row.visible_until, row.positions))
    torch.testing.assert_close(model.head.logits(packed), torch.cat(fresh), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(logits(model, texts[1]), fresh[1], rtol=0, atol=TOLERANCE)


def test_a_gguf_file_is_never_transformers(tmp_path: Path) -> None:
    class File:
        path, layout, config = tmp_path, "gguf", {"general.architecture": "gpt2", "model_type": "gpt2"}

    assert not Transformers(tmp_path).matches(File())  # type: ignore[arg-type]
