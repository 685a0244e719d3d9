"""What other programs put beside a model's weights, told by names: adapters, quantised layers, a trainer's state."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

__all__ = [
    "ADAPTER_ADVICE",
    "NOT_APPLIED",
    "NOT_READ",
    "QUANTISED_ADVICE",
    "adapter_tensors",
    "holds_layer",
    "is_average",
    "is_float8",
    "is_integer",
    "is_quantisers",
    "lies_beside",
    "quantised_tensors",
    "quantiser",
    "told_by",
    "why_beside",
]

NOT_APPLIED = "the checkpoint holds an adapter, and adapters are not applied here"
ADAPTER_ADVICE = (
    "merge it into its base with PEFT, PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(…), "
    "and take what that wrote"
)
NOT_READ = "the checkpoint is quantised, and quantised weights are not read"
QUANTISED_ADVICE = "take the checkpoint that it was quantised from, or dequantise it with the program that made it"

# Parts of names. Source: the layers and prompts of PEFT 0.21, AdapterHub's adapters, P-tuning v2.
_ADAPTER = re.compile(
    r"lora_.*|base_layer|original_module|modules_to_save|ia3_l|hada_[tw]\d.*|lokr_\w+|oft_[rs]|boft_[rs]|vera_lambda_.*"
    r"|fourierft_.*|randlora_.*|hra_u|ln_tuning_layers|adaption_prompt|adaption_gate|trainable_tokens_.*|shira_weight"
    r"|c3a_kernel|bone_.*|miss_block|road_(theta|alpha)|adapters|adapter_(down|up)|invertible_adapters"
    r"|adapter_fusion\w*|prefix_encoder|prompt_embeddings|soft_prompts?"
)
# Source: the files of GPTQ, AWQ, EETQ, bitsandbytes, compressed-tensors, FP8, MXFP4, HQQ, AQLM, quanto, ModelOpt.
_QUANTISED = re.compile(
    r"qweight|qzeros|g_idx|scales|zeros|absmax|quant_map|nested_absmax|nested_quant_map|quant_state.*|SCB|CB|weight_format"
    r"|weight_(scale|scales|scale_inv|scale_2|zero_point|packed|shape|g_idx|global_scale|quantizer\w*)"
    r"|\w+_(blocks|scales|scale_inv)|(input|output|activation|act|weight|in|[qkv])_(scale|zero_point|global_scale)"
    r"|_(data|scale|shift|packed_params\w*)|Qidxs\w*|codebooks?|codes|W_q|qscale\w*|\w*zero_points?|input_quantizer\w*"
    r"|amax|scale_weight|scaled_fp8"
)

# Where a file has what it says of its layers apart from them, the layers' names standing below.
_QUANTISERS_TOP = re.compile(
    r"(\w+_)?(scales?|scale_invs?|zeros|zero_points?|amaxs?|absmaxs?|quants?|quantizers?|quant_states?|qparams)(_\w+)?"
)

_AVERAGE = re.compile(r"(\w*_)?(ema|averaged?|swa|shadow)(_\w+)?|n_averaged")
_TRAINER = re.compile(
    r"opt|opt_?states?(_.*)?|optim(izers?)?(_.*)?|lr_?sched\w*|sched\w*|(global_)?steps?|epochs?|iter(ation|_num)?"
    r"|loops|callbacks|rng\w*|dropout_rng|(grad_)?scaler\w*|amp(_\w+)?|hyper_parameters|best_\w+"
)
_LOSS = re.compile(
    r"criterions?|(\w+_)?loss(es)?(_fn|_fct)?|(\w+_)?metrics?(_\w+)?|(train|val|valid|test)_(\w+_)?(acc|auroc|f1)"
)


def adapter_tensors(names: Iterable[str]) -> list[str]:
    """Those that are an adapter's, or a base's under the name that an adapter gave it."""
    return [name for name in names if any(map(_ADAPTER.fullmatch, _parts(name)))]


def quantised_tensors(names: Iterable[str], dtypes: Mapping[str, str]) -> list[str]:
    """Those that belong to quantised layers beside their weights.

    Args:
        names: of tensors of the model's own layers that it does not know.
        dtypes: of all tensors of the checkpoint.
    """
    narrow = {own for own, dtype in dtypes.items() if _is_narrow(dtype)}
    found = []
    for name in names:
        *path, leaf = _parts(name)
        at_top = path and _QUANTISERS_TOP.fullmatch(path[0])
        if at_top or _QUANTISED.fullmatch(leaf) or any(map(re.compile(r"quant_state.*").fullmatch, path)):
            found.append(name)
        elif lies_beside(name, narrow):
            found.append(name)  # whatever lies beside whole numbers or float8 says what they mean
    return found


def is_quantisers(name: str, layers: Collection[str]) -> bool:
    """Whether a name outside the model's own parts is one that programs which quantise give to what says how.

    No parameter and no buffer of transformers' own models ends so.

    Args:
        layers: the paths of the model's layers and parameters.
    """
    first, *rest = _parts(name)
    if _QUANTISED.fullmatch(rest[-1] if rest else first):
        return True
    return bool(_QUANTISERS_TOP.fullmatch(first)) and holds_layer(name, layers)


def holds_layer(name: str, layers: Collection[str]) -> bool:
    """Whether the path of one of these stands somewhere in a name, but not at its beginning."""
    parts = _parts(name)
    ends = range(1, len(parts) + 1)
    return any(".".join(parts[start:end]) in layers for end in ends for start in range(1, end))


def lies_beside(name: str, weights: Collection[str]) -> bool:
    """Whether a tensor lies beside one of these weights, right below its layer."""
    owner = re.split(r"[./](?=[^./]*$)", name)[0]
    return owner in weights or f"{owner}.weight" in weights


def told_by(names: Iterable[str], weights: Iterable[str]) -> list[str]:
    """Those that say what the numbers of some weights mean, whatever they are called.

    Of `a.b.weight`: below its layer (`a.b.scale`, `a.b.quantizer.scale`), next to it (`a.b_scale`), or with its path
    again elsewhere (`scales.a.b`, `quant.a.b.amax`).
    """
    layers = {name.removesuffix(".weight") for name in weights}
    # Elsewhere a layer may be called without the model that it is in; one part alone says too little.
    short = {rest for name in layers if "." in (rest := name.partition(".")[2])}
    found = []
    for name in names if layers else ():
        starts = [0, *(cut.end() for cut in re.finditer(r"[./]", name))]
        ends = [*(cut.start() for cut in re.finditer(r"[./_]", name)), len(name)]
        if any(name[at:end] in (layers | short if at else layers) for at in starts for end in ends if end > at):
            found.append(name)
    return found


def quantiser(config: Mapping[str, object]) -> str | None:
    """What config.json says of how the weights were quantised; None if it says nothing."""
    for fields in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config", "quantization"):
            said = fields.get(key) if isinstance(fields, Mapping) else None
            if isinstance(said, Mapping) and said:
                method = said.get("quant_method") or said.get("quantization_method") or said.get("quant_type")
                bits = (
                    said.get("bits")
                    or said.get("w_bit")
                    or next((n for n in (4, 8) if said.get(f"load_in_{n}bit")), None)
                )
                told = f"{key}, quant_method {method}" if method else f"{key} without a quant_method"
                return told + (f", {bits} bits" if bits else "")
    return None


def is_average(prefix: str) -> bool:
    """Whether what stands under it is an average of weights over training."""
    return any(map(_AVERAGE.fullmatch, _parts(prefix)))


def is_float8(dtype: str) -> bool:
    """Whether a dtype is one of eight bits with an exponent, which weights mostly need a scale for."""
    return dtype.startswith("float8")


def is_integer(dtype: str) -> bool:
    """Whether a dtype has whole numbers only."""
    return dtype == "bool" or dtype.startswith(("int", "uint"))


def why_beside(name: str, known: Collection[str] = ()) -> str | None:
    """Why a tensor is none of the model's: a trainer's, an average, a loss's; None where its name does not tell.

    Args:
        known: the first parts of the names of the model's own tensors.
    """
    first, *rest = _parts(name)
    if first in known:
        return None
    if _TRAINER.fullmatch(first) or any(map(_OPTIMIZERS.fullmatch, rest)):
        return "it is the trainer's, not the model's"
    if _AVERAGE.fullmatch(first):
        return "it is an average of the weights over training, beside the weights themselves"
    if _LOSS.fullmatch(first):
        return "it is a loss's or a metric's, not the model's"
    return None


_OPTIMIZERS = re.compile(r"opt_?states?(_.*)?|optim(izers?)?(_.*)?|exp_avg(_sq)?|momentum_buffer")


def _is_narrow(dtype: str) -> bool:
    return is_integer(dtype) or is_float8(dtype)


def _parts(name: str) -> list[str]:
    return re.split(r"[./]", name)
