"""Texts that tokenizers get wrong, and what a tokenizer of any kind must do with them."""

PLAIN = [
    "",
    " ",
    "\n",
    "a",
    "Hello world, this is plain text.",
    "  leading and trailing  ",
    "def f(x):\n\treturn {'a': [1, 2.5e-3], \"b\": x_y**2}\n\n\n",
    "line\r\nline\r\n\r\n\tindented",
    "日本語と中文，한국어。",
    "👩‍👩‍👧‍👦 🇩🇪 ❤️ 👍🏽",
    "e\u0301 n\u0303 A\u030a \u1e9b\u0323",
    "ﬁ ½ Ⅷ x² ٣٤٥ १२३",
    "1234567890 3.14159 1,000,000  42",
    " " * 60 + "x" + "\t" * 9 + "\n" * 7,
    "\u00a0nbsp\u3000wide\u200bzero",
    "I'll don't WE'RE they'd",
    "naïve café Zürich Ωmega привет שלום مرحبا",
    "<think>between</think> tags",
    "Supercalifragilisticexpialidocious" * 8,
    "ababab abababa baab",
    "▁already▁▁escaped ▁",
]
CONTROL = [
    "<|im_start|>user\nhi<|im_end|>",
    "<|endoftext|><|extra_0|>",
    "<|begin_of_text|><|eot_id|>",
    "<s>",
    "</s></s>",
    "a<s>b</s>c",
    " <pad> <unk>",
    "[INST] hi [/INST]",
    "<0x41><0xE2>",
    "<|im_end|",
]
TEXTS = PLAIN + CONTROL
ALPHABET = " \t\r\n▁éa1<>|'s👩\u200d\u0301日ab"


def check(tokenizer, texts=tuple(TEXTS), lossless=True, loses=""):
    """Spans cover each text in order, no text becomes a control token, and `decode` gives the text back
    (but for the characters it `loses`)."""
    forbidden = {id for name, id in tokenizer.control.items() if name != tokenizer.names.get("unk_token")}
    for text in texts:
        for after in ("start", "control", "text"):
            ids, spans = tokenizer.encode(text, after=after)
            assert len(ids) == len(spans) and not forbidden & set(ids), text
            assert all(0 <= id < tokenizer.vocab_size for id in ids)
            reach = 0
            for start, end in spans:
                assert 0 <= start <= end <= len(text) and start <= reach, (text, spans)
                reach = max(reach, end)
            assert [start for start, _ in spans] == sorted(start for start, _ in spans)
            assert not spans or reach == len(text)
        if lossless and not set(loses) & set(text):
            assert tokenizer.decode(tokenizer.encode(text)[0]) == text
