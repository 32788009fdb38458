"""Suggestions for an option or a command that does not exist: what other programs call it, or the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

#: Options by what other programs call them: transformers' Trainer, sentence-transformers, Lightning, minilm-v2.
OPTION_WORDS = {
    "--teacher": "--teacher-model --teacher-name --teacher-name-or-path --model --model-name --model-name-or-path",
    "--student-config": "--student --student-model --student-name --config-name --model-config --preset",
    "--data": "--dataset --dataset-name --dataset-path --train-data --train-file --tokens --input",
    "--tokenizer": "--tokenizer-name --tokenizer-name-or-path --model --model-name --model-name-or-path",
    "--output": "--output-dir --output-path --output-file --out --save-dir --save-path --default-root-dir",
    "--force": "--overwrite --overwrite-output-dir --overwrite-cache",
    "--set": "--override --option --setting",
    "--steps": "--max-steps --num-steps --train-steps --num-train-steps --total-steps",
    "--epochs": "--num-train-epochs --num-epochs --max-epochs --train-epochs",
    "--batch-size": "--per-device-train-batch-size --train-batch-size --per-gpu-train-batch-size",
    "--micro-batch-tokens": "--gradient-accumulation-steps --accumulate-grad-batches --micro-batch-size --max-tokens",
    "--max-length": "--max-seq-length --max-seq-len --max-sequence-length --model-max-length --block-size --seq-length",
    "--lr": "--learning-rate",
    "--warmup-steps": "--warmup --num-warmup-steps --warmup-ratio --warmup-proportion",
    "--schedule": "--lr-scheduler-type --lr-scheduler --scheduler --lr-schedule",
    "--weight-decay": "--wd",
    "--clip-norm": "--max-grad-norm --gradient-clip-val --grad-clip --clip-grad --clip-grad-norm",
    "--precision": "--fp16 --bf16 --amp --mixed-precision --dtype --torch-dtype --half",
    "--dtype": "--torch-dtype --precision --fp16 --bf16 --half",
    "--device": "--cuda --gpu --cpu --use-cpu --no-cuda --accelerator --devices --gpus",
    "--compile": "--torch-compile",
    "--seed": "--random-seed --seed-everything",
    "--init": "--init-from --initialize-from --init-student --initialization",
    "--relation-heads": "--num-relation-heads --num-heads",
    "--teacher-layer": "--layer --distill-layer --teacher-layer-index",
    "--eval-fraction": "--validation-split --validation-split-percentage --val-fraction --dev-fraction --eval-split",
    "--eval-every": "--eval-steps --evaluation-steps --val-check-interval",
    "--save-every": "--save-steps --checkpoint-every --checkpoint-save-steps",
    "--keep": "--save-total-limit --keep-last --checkpoint-save-total-limit",
    "--log-every": "--logging-steps --log-steps --log-every-n-steps --log-interval",
    "--report-to": "--logger --wandb --tensorboard --tracker --log-with",
    "--dry-run": "--check --plan --validate",
    "--json": "--output-format",
    "--workers": "--num-workers --num-proc --preprocessing-num-workers --jobs --threads --processes",
    "--text-field": "--text-column --text-column-name --column --field --text-key",
    "--pack": "--packing --group-texts --concat",
    "--overflow": "--truncation --truncate --split",
    "--split-sentences": "--sentences --sentence-split",
    "--continue": "--resume --resume-from-checkpoint",
    "--push-to-hub": "--hub-model-id --repo --repo-id --hub",
    "--format": "--to --backend --export-format",
    "--checkpoint": "--step --ckpt",
    "--private": "--hub-private-repo",
}

#: Commands by what other programs call them.
COMMAND_WORDS = {
    "tokenize": "tokenise tokenizer preprocess prepare prepare-data data encode",
    "distill": "distil train fit run pretrain finetune fine-tune distillation",
    "resume": "continue restart",
    "export": "save convert push upload package",
    "demo": "example try quickstart test",
}


def option_hint(name: str, known: Collection[str], elsewhere: Mapping[str, Collection[str]]) -> str | None:
    """What may be meant by an option that a command lacks; `None` if there is no guess.

    known: the command's options. elsewhere: the options of the other commands.
    """
    spelt = name.lower().replace("_", "-")
    meant = [spelt] if spelt in known else [flag for flag in _by_word(spelt, OPTION_WORDS) if flag in known]
    if not meant:
        commands = [f"minilm {command}" for command, names in elsewhere.items() if spelt in names]
        if commands:
            return f"{spelt} is an option of {' and '.join(commands)}."
        meant = _nearest(spelt, known, OPTION_WORDS)
    return f"Did you mean {' or '.join(meant)}?" if meant else None


def command_hint(name: str, known: Collection[str]) -> str:
    """What may be meant by a command that does not exist."""
    spelt = name.lower()
    if spelt in ("help", "version"):
        return f"Did you mean minilm --{spelt}?"
    meant = [command for command in _by_word(spelt, COMMAND_WORDS) if command in known]
    if meant := meant or _nearest(spelt, known, COMMAND_WORDS):
        return f"Did you mean {' or '.join(f'minilm {command}' for command in meant)}?"
    return f"The commands are {', '.join(known)}."


def _by_word(word: str, names: Mapping[str, str]) -> list[str]:
    return [name for name, words in names.items() if word in words.split()]


def _nearest(name: str, known: Collection[str], names: Mapping[str, str]) -> list[str]:
    """The known names that `name` begins; else those that are, or have among their words, one of the two nearest."""
    if begun := [longer for longer in known if longer.startswith(f"{name}-")]:
        return begun
    words = [word for flag in names if flag in known for word in names[flag].split()]
    near = difflib.get_close_matches(name, [*known, *words], n=2, cutoff=0.7)
    return sorted({meant for word in near for meant in ([word] if word in known else _by_word(word, names))} & {*known})
