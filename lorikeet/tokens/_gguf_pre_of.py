"""Which of llama.cpp's ways to split text is a tokenizer's own: the one that cuts texts as it does.

A tokenizer.json has a regular expression, a GGUF file only a name. Expressions that look alike differ, and some that
differ cut alike, so the pieces are compared and not the expressions.
"""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lorikeet.tokens._gguf_pre import PRE, Pre

# what any two tokenizers that are called the same agree on
EVERYDAY = (
    "Hello world, this is plain text.",
    "  leading and trailing  ",
    "def f(x):\n\treturn {'a': [1, 2.5e-3], \"b\": x_y**2}\n\n\n",
    "line\r\nline\r\n\r\n\tindented",
    "日本語と中文，한국어。",
    "1234567890 3.14159 1,000,000  42",
    "I'll don't WE'RE they'd",
    "naïve café Zürich Ωmega привет שלום مرحبا",
    '{"merchant":"Collège Avalon","amount":14115.00,"date":"2024-11-17"}',
    "x = {'a':[1,2]}\n\n\n    return x\n\t\ty   ",
    "price:  42,  7 years 1234567.8",
    "HelloWorld helloWORLD HELLOworld iPhone's IPHONE'S don'T",
    "a/b/c\\d //x\n/\r\n",
)
# and what they may see in another way: llama.cpp's tables of characters and its expressions are approximations
RARE = (
    "👩\u200d👩\u200d👧\u200d👦 🇩🇪 ❤️ 👍🏽",
    "e\u0301 n\u0303 A\u030a \u1e9b\u0323",
    "ﬁ ½ Ⅷ x² ٣٤٥ १२३",
    " " * 60 + "x" + "\t" * 9 + "\n" * 7,
    "\u00a0nbsp\u3000wide\u200bzero",
    "▁already▁▁escaped ▁",
    "<|im_end|>\n<0x41></s>",
    "it'stuff o'Dare",
    "$x^2+`y`~|<=>= ~é",
    "日本語テスト한국어 中文字符、。！",
    "(a.b,c!d?e…f",
    "Ünïcödé naïve ÀÉ Ünder ǅ ʰ",
    "नमस्ते हिन्दी عربي תוֹרָה",
    "ㅄㆍㄅㄆ ᄀ ｱ Ａ１ Ⅸ \u3000ア\u3000、 «\u3000",
    "-.<sA_lǅ-▁_ A\u3000lb,日",
    "S、 ñ«▁|。-\r3«\t\xa0ß l_アAΩSㅏ½Adtア²!DB<Ωsa",
    "«ǅ٣3TE\u3000S!'.-T-日ж5̃AB\t٣ _ñ한|한ß4",
    "B3dbX3,5 ½T-4\tS/-ǅ",
)


def pre_of(backend: Backend, *, ignore_merges: bool) -> str | None:
    """The name of the split that gives the backend's pieces for every everyday text, and for most rare ones; None
    where there is none. `ignore_merges` of the model decides between those that are alike."""
    want = {text: _pieces(backend, text) for text in EVERYDAY + RARE}
    best, most = None, (-1, False)
    for name, pre in PRE.items():
        if not pre.bytewise:
            continue
        split = _pre_tokenizer(pre)
        if any(_cut(split, text) != want[text] for text in EVERYDAY):
            continue
        alike = sum(_cut(split, text) == want[text] for text in RARE), pre.ignore_merges == ignore_merges
        if alike > most:
            best, most = name, alike
    return best


def _pre_tokenizer(pre: Pre) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, byte_level])


def _pieces(backend: Backend, text: str) -> list[str]:
    return _cut(backend.pre_tokenizer, text)


def _cut(split: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in split.pre_tokenize_str(text)]
