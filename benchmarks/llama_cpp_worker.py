"""llama.cpp at the other end of a pipe: run by a Python that has llama-cpp-python, which needs nothing of Lorikeet.

One request a line on standard input, as JSON, and one answer a line on standard output. `open` comes first:
{"open": FILE, "lora": FILE or null, "context": tokens, "threads": n, "sequences": n, "cache": "f32" or "f16", "flash":
bool, "watch": bool}; what is left out is as llama.cpp has it. `nodes` needs "watch".
"""

import ctypes
import json
import os
import sys
import time

import numpy as np


class Model:
    """One context of one model."""

    def __init__(self, library, said):
        self.l = library
        library.llama_backend_init()
        parameters = library.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = library.llama_model_load_from_file(said["open"].encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {said['open']}")
        settings = library.llama_context_default_params()
        settings.n_ctx = said["context"] * said.get("sequences", 1)
        settings.n_batch = settings.n_ubatch = said["context"]
        settings.n_seq_max = said.get("sequences", 1)
        settings.n_threads = settings.n_threads_batch = said["threads"]
        if said.get("cache") == "f32":  # F16 otherwise
            settings.type_k = settings.type_v = 0
        if "flash" in said:
            settings.flash_attn_type = int(said["flash"])
        self.names, self.seen = frozenset(), {}  # what `nodes` wants of the graph, and has
        if said.get("watch"):  # else its speed would be another
            self.look = _looking(library, self)  # kept, as the context has only its address
            settings.cb_eval = self.look
        self.context = library.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.vocab = library.llama_model_get_vocab(self.model)
        self.size = library.llama_vocab_n_tokens(self.vocab)
        if said.get("lora"):
            adapter = library.llama_adapter_lora_init(self.model, said["lora"].encode())
            if not adapter:
                raise RuntimeError(f"llama.cpp does not load {said['lora']}")
            self._set(adapter)

    def _set(self, adapter):
        if hasattr(self.l, "llama_set_adapters_lora"):
            adapters = (type(adapter) * 1)(adapter) if not isinstance(adapter, int) else (ctypes.c_void_p * 1)(adapter)
            code = self.l.llama_set_adapters_lora(self.context, adapters, 1, (ctypes.c_float * 1)(1.0))
        else:
            code = self.l.llama_set_adapter_lora(self.context, adapter, 1.0)
        if code != 0:
            raise RuntimeError("llama.cpp does not take the adapter")

    def clear(self):
        self.l.llama_memory_clear(self.l.llama_get_memory(self.context), True)

    def ids(self, text, special=False):
        data = text.encode()
        room = len(data) + 16
        found = (self.l.llama_token * room)()
        count = self.l.llama_tokenize(self.vocab, data, len(data), found, room, False, special)
        return list(found[:count])

    def read(self, rows, last_only=True):
        """rows: (tokens, first position, sequence) each. Logits [rows, V] of the last token of each, or of all."""
        total = sum(len(tokens) for tokens, _, _ in rows)
        batch = self.l.llama_batch_init(total, 0, len(rows))
        at = 0
        wanted = []
        for tokens, first, sequence in rows:
            for number, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, first + number
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                keep = not last_only or number == len(tokens) - 1
                batch.logits[at] = keep
                if keep:
                    wanted.append(at)
                at += 1
        batch.n_tokens = total
        code = self.l.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode: {code}")
        found = [
            np.ctypeslib.as_array(self.l.llama_get_logits_ith(self.context, i), shape=(self.size,)).copy()
            for i in wanted
        ]
        self.l.llama_batch_free(batch)
        return np.stack(found)

    def logits(self, ids, by_token=False):
        """[T, V]; the text is read at once, or one token after the other."""
        self.clear()
        if by_token:
            return np.concatenate([self.read([([token], place, 0)]) for place, token in enumerate(ids)])
        return self.read([(ids, 0, 0)], last_only=False)

    def nodes(self, ids, names):
        """What the graph's nodes of these names give, each as [T, D]: "NAME" or, of a layer's, "NAME-NUMBER"."""
        self.names, self.seen = frozenset(names), {}
        self.logits(ids)
        self.names = frozenset()
        return {name: one.reshape(len(ids), -1) for name, one in self.seen.items()}

    def greedy(self, ids, count, ends):
        """(tokens, the gap between the two best logits at each)"""
        self.clear()
        rows, made, gaps = self.read([(ids, 0, 0)]), [], []
        while True:
            best = np.partition(rows[0], -2)[-2:]
            made.append(int(rows[0].argmax()))
            gaps.append(float(best[1] - best[0]))
            if len(made) == count or made[-1] in ends:
                return made, gaps
            rows = self.read([([made[-1]], len(ids) + len(made) - 1, 0)])

    def speed(self, prompts, count):
        """Tokens per second of `count` new tokens for each prompt, all at once: (seconds of reading, of writing)."""
        self.clear()
        start = time.perf_counter()
        rows = np.concatenate([self.read([(ids, 0, number)]) for number, ids in enumerate(prompts)])
        read = time.perf_counter()
        tokens = rows.argmax(-1)
        for step in range(count):
            batch = [([int(token)], len(ids) + step, n) for n, (token, ids) in enumerate(zip(tokens, prompts))]
            tokens = self.read(batch).argmax(-1)
        return read - start, time.perf_counter() - read


def _looking(library, model):
    """What llama.cpp calls before (`ask`) and behind every node of its graph."""
    from llama_cpp._ggml import libggml

    libggml.ggml_get_name.argtypes, libggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    libggml.ggml_get_data.argtypes, libggml.ggml_get_data.restype = [ctypes.c_void_p], ctypes.c_void_p
    libggml.ggml_nelements.argtypes, libggml.ggml_nelements.restype = [ctypes.c_void_p], ctypes.c_int64

    def look(tensor, ask, _):
        name = libggml.ggml_get_name(tensor).decode() if model.names else ""
        kind, _, layer = name.partition("-")
        if kind not in model.names or not (layer or "0").isdigit():  # others are views of them
            return not ask  # not wanted; or go on
        if not ask:
            count, data = libggml.ggml_nelements(tensor), libggml.ggml_get_data(tensor)
            values = np.ctypeslib.as_array((ctypes.c_float * count).from_address(data))
            model.seen[name] = values.copy()  # of several, the last: q and k behind their rope
        return True

    return library.ggml_backend_sched_eval_callback(look)


def main():
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp's own words go elsewhere
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    model = None
    for line in sys.stdin:
        said = json.loads(line)
        try:
            if "open" in said:
                model = Model(llama_cpp, said)
                answer = {"tokens": model.size}
            elif "texts" in said:
                answer = [model.ids(text, said.get("special", False)) for text in said["texts"]]
            elif "logits" in said:
                found = model.logits(said["logits"], said.get("by_token", False))
                np.save(said["file"], found)
                answer = list(found.shape)
            elif "nodes" in said:
                found = model.nodes(said["nodes"], said["names"])
                np.savez(said["file"], **found)
                answer = sorted(found)
            elif "greedy" in said:
                answer = model.greedy(said["greedy"], said["count"], said["ends"])
            else:
                answer = model.speed(said["speed"], said["count"])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
