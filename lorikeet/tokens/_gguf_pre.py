"""How llama.cpp splits text before byte-level BPE, by the name in `tokenizer.ggml.pre` (its src/llama-vocab.cpp).

The patterns of a kind are applied one after the other, each to the pieces the one before it left. Where llama.cpp only
approximates the original tokenizer, llama.cpp is followed: the ids are those it computes. Two of its habits show:
[\\p{Lu}\\p{Lm}...] is any letter to it, and upper and lower case are told apart for A to Z only.
"""

from __future__ import annotations

from typing import NamedTuple


class Pre(NamedTuple):
    """How text is split, and what llama.cpp assumes with it."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token as a whole is not merged up from bytes
    add_bos: bool = False  # when the file does not say
    bytewise: bool = True  # text is written in bytes before merging; else spaces are ▁ and only unknown text is bytes


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACE = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACE}"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}"
_HAN = r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{2F800}-\x{2FA1F}"
_SENTENCE = r" ?[^(\s|.,!?…。，、।۔،)]+"
_LINE_OR_NOT = r"[^\n]+|[\n]+"


def _cased(letter: str, ending: str, digits: str) -> str:
    """Words that turn from upper to lower case once (`letter` is what counts as one)."""
    upper, lower = f"(?:(?={letter})[^a-z])", f"(?:(?={letter})[^A-Z])"
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{upper}*{lower}+{ending}|{start}{upper}+{lower}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"


_ASCII_MARK = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_MARK = r"[[\p{P}\p{S}]&&[^~]]"  # llama.cpp's table of symbols lacks the tilde
_DEEPSEEK_WORDS = rf"{_ASCII_MARK}|(?:[^\r\n\p{{L}}\p{{P}}\p{{S}}]|~)?[\p{{L}}\p{{M}}]+| ?{_MARK}+[\r\n]*|{_LINES}"
_CJK = r"[一-龥\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
_DEEPSEEK3 = (r"\p{N}{1,3}", _CJK, _DEEPSEEK_WORDS)
# the letters that have a case, and few others; as DeepSeek LLM's tokenizer.json lists them
_DEEPSEEK_LETTERS = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}"
    r"\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}"
    r"\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}"
    r"\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}"
    r"\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}"
    r"\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}"
    r"\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}"
    r"\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}"
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}"
    r"\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}"
    r"\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}"
    r"\x{1E900}-\x{1E943}"
)
_DEEPSEEK_ASIAN = r"[[一-龥\x{800}-一\x{AC00}-\x{D7FF}]&&[^\s]]+"  # spaces are ASCII to llama.cpp by then
_DEEPSEEK_MARKS = r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}\x{3002}]+"
_AFMOE_ASIAN = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}"
    r"\x{2F00}-\x{2FDF}\x{0E00}-\x{0E7F}\x{0E80}-\x{0EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}"
    r"\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
)
_YOUTU_ASIAN = (
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}"
    r"\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|" + _CJK
)
_ANY_CASE_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CONTRACTION}?"
_KIMI_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?"

# digits in threes from the right; text before them stays with the first of them, so that spaces there see a digit next
_THREES = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"

_LLAMA3 = (f"{_CONTRACTION}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}",)
_QWEN2 = (f"{_CONTRACTION}|{_WORDS}|\\p{{N}}|{_REST}",)
_GPT4O = (_cased(r"\p{L}", _CONTRACTION + "?", r"\p{N}{1,3}"),)
_TINY_AYA = (
    _THREES,
    rf"{_ANY_CASE_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}",
)
_BAILING = (
    rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|{_SPACE}"
)
_JAIS2_SPACES = "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s"
_CHAMELEON = (
    r"<sentinel:[0-9]+>",
    r"(?:IMGIMG)[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)

# pattern and flags -> the names that stand for them
_KINDS: tuple[tuple[Pre, str], ...] = (
    (Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), "default"),
    (
        Pre(_LLAMA3, ignore_merges=True, add_bos=True),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (Pre(_LLAMA3), "dbrx smaug-bpe chatglm-bpe glm4"),
    (Pre((r"\p{N}{1,3}", f"{_CONTRACTION}|{_WORDS}|\\p{{N}}+|{_REST}"), ignore_merges=True), "minicpm5"),
    (
        Pre((_LLAMA3[0].replace(_SPACE, _JAIS2_SPACES),)),
        "jais-2",
    ),
    (
        Pre((_GPT2,)),
        "gpt-2 phi-2 olmo mpt jais trillion granite-docling exaone4 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en"
        " jina-v2-code roberta-bpe gigachat a.x-4.0 mellum modern-bert",
    ),
    (
        Pre((r"\p{N}", _GPT2)),
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    ),
    (Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (Pre(_QWEN2), "qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan solar-open grok-2 kormo f2llmv2"),
    (Pre((_LINE_OR_NOT, *_QWEN2)), "laguna"),
    (Pre((f"{_WORDS}|\\p{{N}}|{_REST}",)), "ufakzeka"),
    (
        Pre(
            (
                rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}",
            )
        ),
        "qwen35",
    ),
    (
        Pre((r"[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", _DEEPSEEK_MARKS, r"\s+\z", _DEEPSEEK_ASIAN, r"\p{N}+")),
        "deepseek-llm",
    ),
    (Pre((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_ASIAN, r"\p{N}")), "deepseek-coder"),
    (Pre(_DEEPSEEK3), "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (
        Pre((*_DEEPSEEK3[:2], _DEEPSEEK_WORDS.replace(rf"[\r\n]*|{_LINES}", rf"|[\r\n]|{_SPACE}"), r"\p{N}")),
        "spark2_5",
    ),
    (
        Pre(
            (_YOUTU_ASIAN, rf"{_ANY_CASE_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"),
            ignore_merges=True,
        ),
        "youtu",
    ),
    (Pre((_cased(r"\p{L}", "", r"\p{N}"),), ignore_merges=True, add_bos=True), "tekken"),
    (Pre(_GPT4O), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (Pre((_cased(r"[\p{L}\p{M}]", _CONTRACTION + "?", r"\p{N}{1,3}"),), ignore_merges=True), "granite-embed-multi-97m"),
    (Pre(_TINY_AYA), "tiny_aya cohere2moe"),
    (Pre((r"\p{N}+", r"(?=(\d{3})+(?!\d))")), "superbpe"),
    (Pre((_BAILING,)), "bailingmoe bailingmoe2 llada-moe"),
    (
        Pre((rf"{_CONTRACTION}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}",)),
        "seed-coder",
    ),
    (
        Pre(
            (
                rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACE}",
            )
        ),
        "exaone-moe",
    ),
    (Pre((_SENTENCE,)), "bloom poro-chat gpt3-finnish"),
    (Pre((_SENTENCE, r"\p{N}")), "viking"),
    (Pre(_CHAMELEON, add_bos=True), "chameleon"),
    (Pre((f"[{_HAN}]+|{_KIMI_WORDS}|\\p{{N}}{{1,3}}|{_REST}",)), "kimi-k2"),
    (Pre((_THREES, _AFMOE_ASIAN, _DEEPSEEK_WORDS)), "afmoe"),
    # a run of newlines that is a token is taken whole; lines are merged up to theirs anyway
    (Pre((_LINE_OR_NOT,), ignore_merges=True, add_bos=True, bytewise=False), "gemma4"),
    (Pre((_LINE_OR_NOT,), bytewise=False), "sarvam-moe"),
)
PRE = {name: pre for pre, names in _KINDS for name in names.split()}
