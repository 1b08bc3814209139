"""transformers as a source of networks: those it knows and Lorikeet does not, and those that bring their own code.

transformers builds the modules, without weights. Our linears, experts and head go into them, attention is asked of the
view, and the weights are read as for any network: one tensor at a time, under the names a checkpoint has. What a
network is made of is found by looking at its modules and by running it once on tensors without numbers, never from a
list of names. This file alone imports transformers, when it is needed.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorikeet.base.errors import MissingExtra, ModelError, RecipeError
from lorikeet.base.extras import require
from lorikeet.base.kinds import family_files
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models import _hf_attention as serve
from lorikeet.models import _hf_graph as graph
from lorikeet.models._hf_model import Outline, Stack, TransformersModel
from lorikeet.models._hf_names import Reading
from lorikeet.models._hf_study import look, replace_module
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import CausalLM, Shape
from lorikeet.models.experts import ExpertGroup, expert_names
from lorikeet.models.families._contract import Family
from lorikeet.models.gguf_layouts._contract import GGUFLayout
from lorikeet.models.spec import Spec
from lorikeet.quant._contract import FrozenWeight


@dataclass(frozen=True)
class TransformersSpec(Spec):
    """What `Transformers.network` builds from."""

    config: dict[str, Any]
    outline: Outline


class Transformers(Family):
    """Every architecture that transformers makes a causal language model of; see `knows`."""

    kind: ClassVar[str] = "transformers"
    architecture: ClassVar[str] = ""

    def __init__(self, path: Path, trust_remote_code: bool = False):
        self._path, self._trust = path, trust_remote_code
        self._known: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()

    @property
    def installed(self) -> bool:
        """Whether transformers is there to be asked."""
        try:
            self.check_installed()
        except MissingExtra:
            return False
        return True

    def check_installed(self) -> None:
        """Raise MissingExtra, with the pip line, where transformers is not installed."""
        _library()

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Whether transformers knows the checkpoint's network. Raises ModelError where it only comes with code of its
        own, which was not asked for."""
        config = checkpoint.config
        if checkpoint.layout != "hf" or not isinstance(config.get("model_type"), str):
            return False
        if _knows(config["model_type"]):
            if self._trust:
                raise needless_trust(config["model_type"])
            return True
        own = "AutoModelForCausalLM" in (config.get("auto_map") or {})
        if own and not self._trust:
            raise ModelError(
                f"{checkpoint.path} brings its own code, which would run with your rights",
                given=f"model_type {config['model_type']}, auto_map in config.json",
                allowed="code that you have read, or whose author you trust",
                try_="model.trust_remote_code=true",
            )
        return own

    def spec(self, config: dict[str, Any]) -> TransformersSpec:
        """See `Family.spec`."""
        shape, outline = _looked_at(json.dumps(config, sort_keys=True, default=str), self._path, self._trust)
        return TransformersSpec(shape, config, outline)

    def network(self, spec: TransformersSpec, build: Build) -> CausalLM:
        """See `Family.network`."""
        with torch.device("meta") if build.device.type == "meta" else graph.OnMeta():
            network = _make(spec.config, self._path, self._trust)
        network.config.pad_token_id = None  # else it looks for padding in the ids, and warns
        _exchange(network, spec.outline, build)
        _place(network, build)
        model = TransformersModel(network.eval(), spec.shape, spec.outline)
        model.source = f"transformers {_library().root.__version__}"
        return model

    def read(self, checkpoint: Checkpoint, name: str, spec: TransformersSpec) -> Tensor:
        """See `Family.read`."""
        if checkpoint not in self._known:
            self._known[checkpoint] = frozenset(checkpoint.names())
        return Reading(list(spec.outline.pieces), spec.outline.prefix).read(checkpoint, self._known[checkpoint], name)

    def gguf_layout(self, spec: TransformersSpec) -> GGUFLayout:
        """See `Family.gguf_layout`: the file of models/gguf_layouts for this model_type."""
        known = [found() for found in family_files("lorikeet.models.gguf_layouts", GGUFLayout)]
        for layout in known:
            if layout.model_type == spec.config.get("model_type"):
                return layout
        raise ModelError(
            "how a GGUF file holds this network is not known here",
            given=spec.config.get("model_type"),
            allowed="native families (docs/models.md), " + " ".join(layout.model_type for layout in known),
            try_="lorikeet merge, and llama.cpp's convert_hf_to_gguf.py with the folder",
        )

    def ready(self, model: CausalLM) -> None:
        """See `Family.ready`."""
        assert isinstance(model, TransformersModel)
        model.settle()


def needless_trust(network: str) -> RecipeError:
    """The error about code that would not run."""
    return RecipeError(
        f"model.trust_remote_code: has no effect, because the network '{network}' is known without code of its own",
        given="true",
        try_="leave model.trust_remote_code out",
    )


def _library() -> SimpleNamespace:
    """transformers' parts, with our functions registered in its interfaces."""
    return _imported()


@cache
def _imported() -> SimpleNamespace:
    def part(name: str) -> Any:
        return require(name, extra="hf", needed_by="model.source=transformers")

    found = SimpleNamespace(
        root=part("transformers"),
        loading=part("transformers.core_model_loading"),
        auto=part("transformers.models.auto"),
    )
    attention, masks = part("transformers.modeling_utils"), part("transformers.masking_utils")
    attention.ALL_ATTENTION_FUNCTIONS.register(serve.NAME, serve.attention)
    attention.ALL_ATTENTION_FUNCTIONS.register(serve.UNMASKED, serve.attention)
    masks.ALL_MASK_ATTENTION_FUNCTIONS.register(serve.NAME, serve.mask)
    part("transformers.integrations.moe").ALL_EXPERTS_FUNCTIONS.register(serve.NAME, graph.experts)
    return found


def _knows(model_type: str) -> bool:
    auto = _library().auto
    if model_type not in auto.CONFIG_MAPPING:
        return False
    config = auto.CONFIG_MAPPING[model_type]  # code of a model's own, once run, is listed there, too
    if not config.__module__.startswith("transformers."):
        return False
    # encoders have a class for continuing texts, too, which nobody has trained them for
    return config in auto.MODEL_FOR_CAUSAL_LM_MAPPING and config not in auto.MODEL_FOR_MASKED_LM_MAPPING


def _make(settings: dict[str, Any], path: Path, trust: bool) -> Any:
    """The network as transformers makes it, in float32 but for what the mode in force says."""
    library = _library()
    kept = {key: value for key, value in settings.items() if key not in ("quantization_config", "dtype", "torch_dtype")}
    try:
        if _knows(kept["model_type"]):
            kept.pop("auto_map", None)
            kind = library.auto.CONFIG_MAPPING[kept["model_type"]]
            config = kind.from_dict(kind._decode_special_floats(kept))
        else:
            config = library.root.AutoConfig.from_pretrained(path, trust_remote_code=trust)
        config.use_cache = False
        network = library.root.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust)
    except Exception as error:  # of transformers' code, or of the model's own
        raise ModelError(
            f"{path}: transformers cannot build a network from config.json",
            given=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            try_="the config.json that belongs to the weights",
        ) from error
    with contextlib.suppress(AttributeError, KeyError, ValueError):  # networks without experts
        network.config._experts_implementation = serve.NAME
    return network


@cache
def _looked_at(settings: str, path: Path, trust: bool) -> tuple[Shape, Outline]:
    config = json.loads(settings)
    return look(lambda: _make(config, path, trust).eval(), _undo, config)


def _undo(network: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return _library().loading.revert_weight_conversion(network, tensors)


def _exchange(network: Any, outline: Outline, build: Build) -> None:
    """Put our linears, experts and head into the network, and watch its layers."""
    stems = {piece.key: piece.stem for piece in outline.pieces}
    beside = {stack.module.rpartition(".")[0]: stack for stack in outline.stacks}
    for name, layout in outline.linears.items():
        module = network.get_submodule(name)
        out, width = module.weight.shape if layout == "rows" else module.weight.shape[::-1]
        stack = beside.get(name.rpartition(".")[0])
        routes = stack is not None and out == network.get_submodule(stack.module).gate_up_proj.shape[0]
        bias = getattr(module, "bias", None) is not None
        group = build.linears([stems[f"{name}.weight"]], [out], width, bias=bias, routes=routes)
        replace_module(network, name, graph.Linear(group, build.dtype))
    for stack in outline.stacks:
        _exchange_experts(network.get_submodule(stack.module), stack, build)
    head = network.get_submodule(outline.head)
    replace_module(network, outline.head, graph.Capture(head.weight, getattr(head, "bias", None)))
    graph.watch_layers(list(network.get_submodule(outline.layers)))


def _exchange_experts(module: Any, stack: Stack, build: Build) -> None:
    for key, (owner, leaves) in (("gate_up_proj", stack.gate_up), ("down_proj", stack.down)):
        count, rows, width = getattr(module, key).shape
        weight = build.experts(expert_names(owner, leaves, count), count * rows, width)
        sizes = [rows // len(leaves)] * len(leaves)
        delattr(module, key)
        setattr(module, key, ExpertGroup(owner, f"{stack.module}.{key}", leaves, sizes, count, weight))
    module.lorikeet_activation = stack.activation


def _place(network: Any, build: Build) -> None:
    """Make room for what is left: norms, embeddings, tables. A tensor that has two names stays one."""
    fp32 = [*getattr(network, "_keep_in_fp32_modules_strict", ())]
    if build.dtype == torch.float16:
        fp32 += getattr(network, "_keep_in_fp32_modules", ())
    made: dict[int, nn.Parameter] = {}
    ours = {id(part) for module in network.modules() if isinstance(module, (graph.Linear, FrozenWeight))
            for part in module.modules()}  # fmt: skip
    for name, module in list(network.named_modules()):
        if id(module) in ours or isinstance(module, ExpertGroup):
            continue
        for key, old in module._parameters.items():
            if old is None:
                continue
            if id(old) not in made:
                precise = any(word in f"{name}.{key}".split(".") for word in fp32)
                dtype = torch.promote_types(build.dtype, torch.float32) if precise else build.dtype
                room = torch.empty(old.shape, dtype=dtype, device=build.device)
                made[id(old)] = nn.Parameter(room, requires_grad=False)
            module._parameters[key] = made[id(old)]
        for key, buffer in module._buffers.items():
            if buffer is not None:
                lost = buffer.is_meta and build.device.type != "meta"
                kept = torch.zeros_like(buffer, device=build.device) if lost else buffer.to(build.device)
                module._buffers[key] = kept
