"""Whether a checkpoint's config describes the network that a graph was captured from.

A packaged graph is used for a checkpoint only when every field of the config that shapes the network agrees. The
graph remembers those fields, the class's defaults for those a config.json leaves out, and the other names some of
them go by, so that the comparison needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from zoo.special_cases import special_case

__all__ = ["ABSENT", "Contradiction", "contradictions", "current", "differences", "shaping"]


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()
"""What a nested config has for a field that it lacks and that has no default: the code that reads it has its own."""


class Contradiction(NamedTuple):
    """A field, dotted where it is of a nested config, that a config and a graph's record have otherwise."""

    field: str
    got: Any
    expected: Any


# Fields that no evaluated network depends on: names, training, generation, what transformers returns besides.
_IGNORED = """
    _name_or_path _commit_hash _attn_implementation* _experts_implementation* _output_attentions attn_implementation
    transformers_version transformers.js_config architectures auto_map model_type dtype torch_dtype torchscript
    tie_encoder_decoder pruned_heads is_*_converted quantization_config id2label label2id problem_type
    finetuning_task task_specific_params tokenizer_class prefix *dropout* *drop_path* *_drop *drop_rate *layerdrop
    *_pdrop drop_* layerdrop init_std init_xavier_std initializer_* *_init_std *initializer_range embedding_init*
    init_* *initializer_factor rescale_prenorm_residual residual_in_fp32_init use_cache cache_implementation
    return_dict return_dict_in_generate output_attentions output_hidden_states output_scores output_logits
    output_past output_router_logits gradient_checkpointing bos_token_id decoder_start_token_id sep_token_id
    unk_token_id forced_* max_length min_length num_beams* num_return_sequences do_sample
    early_stopping temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens remove_invalid_values
    exponential_decay_* diversity_penalty renormalize_logits constraints apply_spec_augment mask_time_*
    mask_feature_* median_filter_width ctc_* *aux_loss* *_loss_* loss_function_* classifier_bias_init router_aux*
    sparse_pred* sparse_prediction pretraining_tp summary_first_dropout wandb* directionality pooler_fc* pooler_num*
    pooler_size* pooler_type* adapters gradient_*
""".split()
_EXACT = frozenset(name for name in _IGNORED if "*" not in name)
_STARTS = tuple(name[:-1] for name in _IGNORED if name.endswith("*") and not name.startswith("*"))
_ENDS = tuple(name[1:] for name in _IGNORED if name.startswith("*") and not name.endswith("*"))
_HOLDS = tuple(name[1:-1] for name in _IGNORED if name.startswith("*") and name.endswith("*"))
_AROUND = tuple(name.split("*") for name in _IGNORED if "*" in name[1:-1])

_SHAPING = ("token_dropout", "dropout_positions")
"""What those patterns hold and an evaluated network depends on: ESM scales by how many tokens are masked."""

_NULL_IS_UNSET = ("out_features", "out_indices")
"""Fields where transformers takes null as "left out" (BackboneConfigMixin: the last stage)."""


def shaping(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that shape the evaluated network, nested configs included; labels by their number."""
    config = current(config)
    kept = {key: shaping(value) if _is_config(value) else value for key, value in config.items() if not _ignored(key)}
    labels = config.get("id2label")
    if isinstance(labels, Mapping):
        kept["num_labels"] = len(labels)
    return kept


def differences(config: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """What in a checkpoint's config contradicts a graph's record of its own, one line each; empty if nothing.

    Args:
        config: a config.json's fields.
        record: {"fields": shaping fields of the captured config, "defaults": the class's own, "aliases": other name
            -> field}. A field that the record lacks is unknown to the class and cannot shape it.
    """
    return [f"{field}: {got!r}, the graph has {expected!r}" for field, got, expected in contradictions(config, record)]


def contradictions(config: Mapping[str, Any], record: Mapping[str, Any]) -> list[Contradiction]:
    """The same as fields and values."""
    return list(_compare(shaping(config), record["fields"], record["defaults"], record.get("aliases", {}), ""))


def _compare(
    found: Mapping[str, Any], fields: Mapping[str, Any], defaults: Mapping[str, Any], aliases: Any, at: str
) -> Iterator[Contradiction]:
    named = {aliases.get(key, key): value for key, value in found.items()}
    named.update((key, value) for key, value in found.items() if key in fields)
    for key, expected in fields.items():
        if not at and key not in named and key not in defaults:
            continue  # the class has no default for it: it was in the captured config without meaning anything
        got = named.get(key, defaults.get(key, None if expected is None else ABSENT))
        if got is None and key in _NULL_IS_UNSET:
            got = defaults.get(key)
        if isinstance(expected, Mapping) and isinstance(got, Mapping):
            nested = defaults.get(key)
            yield from _compare(got, expected, nested if isinstance(nested, Mapping) else {}, {}, f"{at}{key}.")
        elif not _same(got, expected):
            yield Contradiction(f"{at}{key}", got, expected)


def _ignored(key: str) -> bool:
    """Whether a field is one of `_IGNORED`; each load asks, and a regular expression of them takes long to compile."""
    if key in _SHAPING:
        return False
    if key in _EXACT or key.startswith(_STARTS) or key.endswith(_ENDS) or any(part in key for part in _HOLDS):
        return True
    return any(key.startswith(start) and key.endswith(end) for start, end in _AROUND)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return a == b


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) and "model_type" in value


def _is_case(config: Mapping[str, Any], name: str) -> bool:
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in special_case(name)


def current(config: Mapping[str, Any]) -> dict[str, Any]:
    """Old spellings as transformers 5 spells them.

    One `rope_parameters` instead of rope_theta, rope_scaling and partial_rotary_factor; as many key-value heads as
    heads where their number is null; and T5 1.1's untied embeddings, which its config class takes for "does not scale
    the decoder's outputs".
    """
    config = dict(config)
    if "num_key_value_heads" in config and config["num_key_value_heads"] is None:
        config["num_key_value_heads"] = config.get("num_attention_heads")
    if _is_case(config, "scaled if tied") and config.get("tie_word_embeddings") is False:
        config |= {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    theta, scaling = config.pop("rope_theta", None), config.pop("rope_scaling", None)
    if not isinstance(scaling, Mapping | None):
        config["rope_scaling"] = scaling  # of a wrong type: as it is
    elif "rope_parameters" not in config and (theta is not None or scaling):
        scaling = dict(scaling or {})
        scaling.setdefault("rope_type", scaling.pop("type", "default"))
        if theta is not None:
            scaling["rope_theta"] = theta
        config["rope_parameters"] = scaling
    if isinstance(config.get("rope_parameters"), Mapping):
        rope = dict(config["rope_parameters"])
        rope.pop("type", None)
        # 10000 is the field's common base and what transformers fills in where a config names none
        if "rope_type" in rope or "rope_theta" in rope:
            rope = {"rope_type": "default", "rope_theta": 10000.0, **rope}
            if (part := config.pop("partial_rotary_factor", None)) is not None:
                rope.setdefault("partial_rotary_factor", part)
        config["rope_parameters"] = rope
    return config
