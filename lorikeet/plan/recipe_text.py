"""A recipe as a commented YAML file: every line says why it is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lorikeet.base.yaml_lines import dump
from lorikeet.plan.choose import LORA_RATE, Choice, Machine, Network
from lorikeet.plan.look import Look
from lorikeet.plan.memory import GIB

_COLUMN, _WIDTH = 42, 118  # where comments begin, and where lines end
Line = tuple[str, str]  # YAML, comment


def render(
    choice: Choice,
    found: Look,
    network: Network,
    machine: Machine,
    *,
    data: Sequence[str],
    model: str,
    output_dir: str,
    validation: bool | None = None,
) -> str:
    """The file's text. `data` and `model` are paths as the recipe should have them; `validation`: whether a folder
    among the data brings a split of its own."""
    lines: list[Line] = [(f"output_dir: {_yaml(output_dir)}", "the run's folder, seen from where you type the command")]
    lines += _model(network, machine, model)
    if choice.nf4:
        lines += [("quant: {kind: nf4, double_quant: true}", "frozen weights in 4 bits: 16 bits of each do not fit")]
    lines += _adapter(choice, network)
    lines += _data(choice, found, data, own_split=bool(validation))
    lines += _train(choice, network)
    if choice.validation is not None or validation:
        samples = "0", "documents have no prompt to answer"
        if not found.documents:
            samples = "3", "held-out prompts answered before and after, for the report"
        lines += [("evaluate:", ""), ("  before: true", "measure once before the first step, to see what training did")]
        lines += [(f"  samples: {samples[0]}", samples[1])]
    purpose = choice.purpose
    lines += [("generate:", "")]
    lines += [(f"  max_new_tokens: {choice.max_new_tokens}", _new_tokens(found))]
    lines += [(f"  temperature: {purpose.temperature}", purpose.why_temperature)]
    head = f"# {Path(network.name).name} on {found.rows.rows:,} rows, for {purpose.name}: {purpose.what}.\n"
    head += "# Written by `lorikeet init`; every value may be changed. All options: lorikeet schema --markdown\n"
    return head + "".join(f"{line}\n" for pair in lines for line in _commented(*pair))


def _model(network: Network, machine: Machine, model: str) -> Iterator[Line]:
    billions = network.sizes.parameters / 1e9
    size = f"{billions:.2f} billion weights" if billions >= 1 else f"{billions * 1000:.0f} million weights"
    yield "model:", ""
    yield f"  path: {_yaml(model)}", f"family {network.family}, {size}, context {network.max_position}"
    yield "  dtype: auto", f"is {machine.dtype} here, by a timed matmul"
    if machine.usable_cores < machine.cores:
        yield f"  threads: {machine.usable_cores}", f"this process may use so many of {machine.cores} cores"


def _adapter(choice: Choice, network: Network) -> Iterator[Line]:
    purpose, method = choice.purpose, choice.method
    size = f"{method.trained.numbers / 1e6:.1f} million weights train"
    yield "adapter:", ""
    if method.kind != "lora":
        own = "the model's own" if method.heavy else "the model's own stay as they are"
        yield f"  kind: {method.kind}", f"{size}, {own}; docs/methods.md says when to take it"
        return
    yield "  kind: lora", f"{size}, the model's own stay as they are"
    yield f"  r: {purpose.r}", purpose.why_r
    yield f"  lora_alpha: {2 * purpose.r}", "the update is multiplied by lora_alpha / r"
    if choice.attention_only:
        yield "  target_modules: [q_proj, k_proj, v_proj, o_proj]", "not the experts: their updates would be many"
    else:
        yield "  target_modules: all-linear", "learns better than attention alone, for little more time"


def _data(choice: Choice, found: Look, data: Sequence[str], *, own_split: bool) -> Iterator[Line]:
    rows = found.rows
    counted = f"{'about ' if rows.estimated else ''}{rows.rows:,} rows, {found.distinct:,} of them different"
    yield "data:", ""
    if len(data) == 1:
        yield f"  train: {_yaml(list(data))}", counted
    else:
        yield "  train:", counted
        yield from ((f"    - {_yaml(path)}", "") for path in data)
    if own_split:
        yield "  validation: auto", "the held-out split that lies beside the training data"
    elif choice.validation is None:
        yield "  validation: null", "too few conversations to hold some out"
    else:
        yield f"  validation: {choice.validation}", "conversations held out, to see that it learns and does not recite"
    yield "  format: auto", f"found: {' '.join(rows.formats)}"
    yield f"  template: {{kind: {found.template}}}", _template(found)
    if not found.documents:
        yield f"  loss: {choice.purpose.loss}", choice.purpose.why_loss
    yield f"  max_length: {choice.max_length}", _length(choice, found)
    unusable = rows.unreadable + found.unusable
    if unusable:
        counted = f"{rows.unreadable} rows cannot be read, {found.unusable} of {len(rows.sample)} not be said"
        yield "  bad_rows: skip", f"{counted}: left out and counted"
    elif len(rows.sample) < rows.rows:
        yield "  bad_rows: skip", f"{len(rows.sample):,} rows were looked at; others that cannot be used are counted"


def _template(found: Look) -> str:
    if found.documents:
        return "documents are the text alone, whatever the template"
    if found.template == "jinja":
        return "the model's own chat template"
    if found.own_template:
        if "jinja" in found.refused:
            return "the model's own (jinja) cannot say every row; this is in its control tokens too"
        return "the model brings no chat template; its tokenizer has this one's control tokens"
    return "the model has no chat format: it learns this one, in plain text"


def _length(choice: Choice, found: Look) -> str:
    if found.documents:
        return "tokens of a window; longer documents are cut into several"
    median, most = found.percentile(0.5), int(found.lengths.max())
    cut = f"; {choice.longer:.1%} are longer and lose the start" if choice.longer else ""
    return f"tokens: half have up to {median}, the longest {most}{cut}"


def _train(choice: Choice, network: Network) -> Iterator[Line]:
    purpose = choice.purpose
    yield "train:", ""
    yield f"  num_train_epochs: {choice.epochs}", "passes: few rows need more of them, many rows fewer"
    yield f"  examples_per_step: {choice.examples_per_step}", f"conversations per update: {choice.steps} updates in all"
    usual = purpose.learning_rate * choice.method.usual_rate / LORA_RATE
    small = " (small models take larger steps)" if choice.learning_rate > usual else ""
    large = " (large models take smaller steps)" if choice.learning_rate < usual else ""
    yield (
        f"  learning_rate: {_number(choice.learning_rate)}",
        f"the peak, usual for {'LoRA' if choice.method.kind == 'lora' else choice.method.kind} and "
        f"{purpose.name}{small}{large}",
    )
    yield "  lr_scheduler_type: cosine", "falls to zero at the last step"
    yield "  warmup_ratio: 0.05", "rises in the first twentieth of the steps"
    memory = f"{choice.memory.total / GIB:.1f} GiB estimated at the peak"
    yield f"  row_tokens: {choice.row_tokens}", f"tokens of a packed row at most; {memory}"
    if choice.checkpointing:
        yield "  gradient_checkpointing: true", "layers are computed twice, because keeping them does not fit"
    else:
        yield (
            "  gradient_checkpointing: false",
            "memory suffices to keep all layers; true would need less and take longer",
        )
    if choice.in_backward:
        yield "  optimizer_in_backward: true", "a weight moves as its gradient is made: all at once do not fit"
        yield "  max_grad_norm: 0", "which leaves no moment to clip them"
    yield f"  save_steps: {choice.cadence}", "a checkpoint every so many steps: a stopped run goes on from there"
    if choice.validation is not None:
        yield f"  eval_steps: {choice.cadence}", "validate as often"
    yield "  seed: 0", "decides order and initialisation; the same seed gives the same run"


def _new_tokens(found: Look) -> str:
    return "documents have no replies" if found.documents else "tokens: 95 % of the replies in the data fit"


def _commented(yaml: str, comment: str) -> Iterator[str]:
    """One line; a comment that would make it too long stands above."""
    if not comment:
        yield yaml
        return
    line = f"{yaml:<{_COLUMN}}# {comment}" if len(yaml) < _COLUMN - 1 else f"{yaml}  # {comment}"
    if len(line) <= _WIDTH:
        yield line
    else:
        yield f"{' ' * (len(yaml) - len(yaml.lstrip()))}# {comment}"
        yield yaml


def _yaml(value: str | list[str]) -> str:
    return dump(value, one_line=True)


def _number(value: float) -> str:
    """1.0e-4 as people write it."""
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}"


def beside(path: Path, recipe: Path) -> str:
    """How a recipe names a file that is here: relative to the recipe where it lies below it, else absolute, so that
    the recipe means the same from everywhere."""
    whole, folder = path.expanduser().resolve(), recipe.absolute().parent.resolve()
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)
