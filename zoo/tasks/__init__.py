"""What models are for: task names, and tasks done end to end on any backend."""

from __future__ import annotations

from zoo.errors import ConfigError

__all__ = ["TASKS", "task_name"]

TASKS: dict[str, tuple[str, ...]] = {
    "feature-extraction": ("AutoModel",),
    "fill-mask": ("AutoModelForMaskedLM",),
    "text-generation": ("AutoModelForCausalLM",),
    "text2text-generation": ("AutoModelForSeq2SeqLM",),
    "text-classification": ("AutoModelForSequenceClassification",),
    "token-classification": ("AutoModelForTokenClassification",),
    "question-answering": ("AutoModelForQuestionAnswering",),
    "multiple-choice": ("AutoModelForMultipleChoice",),
    "image-classification": ("AutoModelForImageClassification",),
    "image-feature-extraction": ("AutoModel",),
    "semantic-segmentation": ("AutoModelForSemanticSegmentation",),
    "object-detection": ("AutoModelForObjectDetection",),
    "depth-estimation": ("AutoModelForDepthEstimation",),
    "audio-classification": ("AutoModelForAudioClassification",),
    "automatic-speech-recognition": ("AutoModelForCTC", "AutoModelForSpeechSeq2Seq"),
    "image-text-to-text": ("AutoModelForImageTextToText",),
    "zero-shot-image-classification": ("AutoModelForZeroShotImageClassification",),
    "pretraining": ("AutoModelForPreTraining",),  # last: most such classes are named by what they serve else
}
"""Task, by the hub's name -> the transformers auto classes that serve it."""

_SHORT = {
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
    "seq2seq-lm": "text2text-generation",
    "sequence-classification": "text-classification",
    "ctc": "automatic-speech-recognition",
    "embedding": "feature-extraction",
    "base": "feature-extraction",
}


def task_name(task: str) -> str:
    """The hub's name of a task: "masked-lm" -> "fill-mask".

    Raises:
        ConfigError: no such task.
    """
    name = _SHORT.get(task, task)
    if name not in TASKS:
        raise ConfigError(
            f"there is no task {task!r}", expected=", ".join(sorted({*TASKS, *_SHORT})), do="pass one of these"
        )
    return name
