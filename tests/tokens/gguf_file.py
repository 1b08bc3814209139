"""A GGUF file that holds a tokenizer and nothing else."""

import gguf


def write_gguf(path, **values):
    """`values`: keys of tokenizer.ggml (None leaves one out); `chat_template` stands beside them."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in values.items():
        key = "tokenizer.chat_template" if name == "chat_template" else f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
