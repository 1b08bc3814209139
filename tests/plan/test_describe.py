import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorikeet.base.errors import CheckpointError
from lorikeet.checkpoints import hf
from lorikeet.plan.describe import describe


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of the tiny model to change."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_hugging_face_folder(tiny_model):
    facts = describe(tiny_model)
    json.dumps(facts)
    tensors = load_file(tiny_model / "model.safetensors")
    assert facts["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert facts["stored"] == {"F32": {"tensors": len(tensors), "parameters": facts["parameters"]}}
    sizes = ("layers", "width", "heads", "kv_heads", "head_width", "ffn_width", "context")
    assert [facts[size] for size in sizes] == [2, 64, 4, 2, 16, 128, 512]
    assert (facts["layout"], facts["family"], facts["architecture"]) == ("hf", "llama", "LlamaForCausalLM")
    assert facts["tied"] is False and facts["quantisation"] is None
    assert facts["size_bytes"] == sum(file.stat().st_size for file in tiny_model.iterdir())
    assert facts["tokenizer"]["special"] == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert facts["tokenizer"]["vocabulary"] == facts["vocabulary"]
    assert facts["trainable"] is True and facts["why_not"] is None


def test_a_template_is_compared_by_what_it_says(model):
    template = describe(model)["chat_template"]
    assert template["own"] and "chatml" in template["same_as"] and "chatml" in template["suits"]
    odd = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    change(model / "tokenizer_config.json", chat_template=odd)
    template = describe(model)["chat_template"]
    assert template["own"] and template["same_as"] == []
    change(model / "tokenizer_config.json", chat_template="{% for m in %}")
    assert "fault" in describe(model)["chat_template"]
    change(model / "tokenizer_config.json", chat_template=None)
    assert describe(model)["chat_template"]["own"] is False


def test_no_weight_is_read(model, monkeypatch):
    monkeypatch.setattr(hf.HuggingFaceCheckpoint, "read", lambda *_: pytest.fail("a weight was read"))
    assert describe(model)["trainable"]


@pytest.mark.parametrize("width_key", ["hidden_size", "n_embd"])
def test_an_unknown_family_has_its_sizes_all_the_same(model, width_key):
    change(
        model / "config.json", model_type="gpt_odd", architectures=["OddModel"], **{"hidden_size": None, width_key: 64}
    )
    facts = describe(model)
    assert (facts["family"], facts["model_type"], facts["architecture"]) == (None, "gpt_odd", "OddModel")
    assert facts["width"] == 64 and facts["layers"] == 2
    assert facts["trainable"] is False and "gpt_odd" in facts["why_not"]


def test_settings_of_a_known_family_that_cannot_be_built(model):
    change(model / "config.json", num_attention_heads=None)
    facts = describe(model)
    assert facts["trainable"] is False and "num_attention_heads" in facts["why_not"]


def test_quantised_folders(model):
    """What config.json says, and whether what lies beside it can be read."""
    tensors = load_file(model / "model.safetensors")
    packed = {"model.layers.0.mlp.up_proj.qweight": torch.zeros(8, 128, dtype=torch.int32)}
    change(model / "config.json", quantization_config={"quant_method": "awq", "bits": 4})
    facts = describe(model)
    assert facts["quantisation"] == "awq, 4 bits" and facts["why_not"] is None  # made dense, and not said
    save_file(tensors | packed, model / "model.safetensors")
    assert "quantised in a way that is not read (awq; " in describe(model)["why_not"]
    change(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    facts = describe(model)
    assert facts["quantisation"] == "gptq, 4 bits" and facts["why_not"] is None
    change(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 5})
    assert "no such bits (5)" in describe(model)["why_not"]
    save_file(tensors, model / "model.safetensors")
    change(model / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert describe(model)["quantisation"] == "bitsandbytes, 4 bits"


def test_a_model_without_a_tokenizer(model):
    (model / "tokenizer.json").unlink()
    facts = describe(model)
    assert facts["tokenizer"] is facts["chat_template"] is None
    assert facts["family"] == "llama" and "tokenizer" in facts["why_not"]


def test_mixed_dtypes(model):
    tensors = load_file(model / "model.safetensors")
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = tensors[name].to(torch.bfloat16)
    save_file(tensors, model / "model.safetensors")
    stored = describe(model)["stored"]
    assert stored["BF16"] == {"tensors": 1, "parameters": tensors[name].numel()}
    assert stored["F32"]["tensors"] == len(tensors) - 1


def test_a_gguf_file(tmp_path):
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(str(path), "odd-net")
    writer.add_name("An odd net")
    writer.add_block_count(3)
    writer.add_embedding_length(64)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_tensor("a.weight", np.zeros((8, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b.weight", np.zeros(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = describe(path)
    assert facts["stored"] == {"Q8_0": {"tensors": 1, "parameters": 256}, "F32": {"tensors": 1, "parameters": 5}}
    assert (facts["layers"], facts["width"], facts["heads"], facts["name"]) == (3, 64, None, "An odd net")
    assert facts["quantisation"] == "Q4_K_M" and facts["parameters"] == 261
    assert facts["trainable"] is False and "odd-net" in facts["why_not"]


def test_an_adapter(tmp_path):
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "b",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    facts = describe(tmp_path)
    assert (facts["layout"], facts["adapter"], facts["base"], facts["r"]) == ("adapter", "lora", "b", 8)
    assert facts["trainable"] is False and "merge" in facts["why_not"]
    for broken in ("{", "[]", "{}"):
        (tmp_path / "adapter_config.json").write_text(broken)
        with pytest.raises(CheckpointError, match="not an adapter's settings"):
            describe(tmp_path)
