"""One kind of storage, by the verbs a person uses: `train` with a held-out part, then the run's folder answers.

The job: `recipe`, and `tokens` of each answer. Prints one RESULT line like every runner; the peak memory that counts is
`training_peak_rss_gib`, read before the run answers."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from quant_kinds import bits_per_weight
from recorder import read_job, report

from lorikeet import api, config
from lorikeet.base.nouns import Conversation, Message
from lorikeet.infer.sampling import GenerateOptions

ASKED = ("Name three primary colors.", "Why is the sky blue?", "Write a short poem about rain.", "What is 12 times 12?")


def answers_per_second(folder: Path, tokens: int) -> tuple[float, tuple[float, float], list[str]]:
    """(tokens/s of four greedy replies at once, bits a weight, the replies) of a run."""
    engine = api.engine(folder)
    engine.stop_ids = ()  # all replies have the same length
    asked = [Conversation((Message("user", text),)) for text in ASKED]
    began, texts = time.perf_counter(), [""] * len(asked)
    for index, reply, _ in engine.replies(asked, GenerateOptions(max_new_tokens=tokens)):
        texts[index] = reply
    return len(asked) * tokens / (time.perf_counter() - began), bits_per_weight(engine.model), texts


def main() -> None:
    job = read_job()
    run = config.parse(job["recipe"])
    summary = api.train(run, overwrite=True)
    rate, (bits, bits_of_all), texts = answers_per_second(run.output_dir, job["tokens"])
    report({
        "bits": bits, "bits_of_all_linears": bits_of_all, "loss_before": summary["eval_loss_before"],
        "loss_after": summary["eval_loss"], "tokens_per_second": summary["tokens_per_second"],
        "training_peak_rss_gib": summary["peak_rss_bytes"] / 2**30, "steps": summary["steps"],
        "decode_tokens_per_second": rate, "replies": texts, "seconds": summary["seconds"],
    })  # fmt: skip


if __name__ == "__main__":
    main()
