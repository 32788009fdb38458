"""Writes the reference pages, `docs/reference/*.md`, from the code: commands, settings, files.

python docs/generate.py          write them
python docs/generate.py --check  fail if one is not what the code says
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import typer
import yaml
from pydantic import BaseModel

from minilm_cli.cli import app
from minilm_cli.runs import plan
from minilm_cli.settings import load
from minilm_cli.tokens import store

FOLDER = Path(__file__).parent / "reference"
HEADER = "<!-- Written by docs/generate.py from the code. Edit that, not this. -->\n\n"

#: What a command line's value is called where its option does not name it.
TYPES = {str: "text", int: "integer", float: "number", Path: "path", bool: ""}

#: The meaning of what the manifest of a token store holds. A field that is missing here is an error.
MANIFEST = {
    "format_version": "Version of this layout. A reader refuses a newer one.",
    "written_by": "Version of minilm that wrote it.",
    "tokenizer.name": "Hub name or folder of the tokenizer.",
    "tokenizer.revision": "Branch, tag or commit that was asked for.",
    "tokenizer.vocabulary_sha256": "SHA-256 of the sorted vocabulary; `distill` compares it with the teacher's.",
    "tokenizer.vocabulary_size": "1 + the largest token id. It decides the type of the ids.",
    "tokenizer.special_ids": "Ids of the special tokens, rising.",
    "max_length": "Tokens a sequence could have at most, special tokens counted.",
    "sequences": "Sequences in all shards.",
    "tokens": "Tokens in all shards.",
    "length_histogram": "Entry n: how many sequences have n tokens.",
    "shards[].file": "The file of ids. The offsets are beside it, in `….offsets.npy`.",
    "shards[].sequences": "Sequences in this shard.",
    "shards[].tokens": "Tokens in this shard.",
    "shards[].sha256": "SHA-256 of the file of ids.",
    "shards[].offsets_sha256": "SHA-256 of the file of offsets.",
}


def pages() -> dict[str, str]:
    """The text of every page by its file's name."""
    group = typer.main.get_command(app.app)
    commands: Mapping[str, Any] = getattr(group, "commands", {})
    found = {"minilm.md": _overview(group, commands)}
    for name, command in commands.items():
        found[f"{name}.md"] = _command_page(name, command)
    found["settings.md"] = _settings_page()
    found["token-store.md"] = _token_store_page()
    found["plan.md"] = _plan_page()
    return {name: HEADER + text.rstrip() + "\n" for name, text in found.items()}


# --- Commands ----------------------------------------------------------------------------------------------------


def _overview(group: Any, commands: Mapping[str, Any]) -> str:
    rows = [(f"[`minilm {name}`]({name}.md)", _sentence(command.help)) for name, command in commands.items()]
    return f"""# minilm

{_sentence(group.help)}

```text
minilm [OPTIONS] COMMAND [ARGUMENTS]
python -m minilm_cli [OPTIONS] COMMAND [ARGUMENTS]
```

{_table(("command", "what it does"), rows)}

## Options

{_table(("option", "meaning"), [(_names(option), _sentence(option.help)) for option in _options(group)])}
"""


def _command_page(name: str, command: Any) -> str:
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    of_settings = _settings_of_flags() if name == "distill" else {}
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = " ".join(["minilm", name, *map(_metavar, arguments), "[OPTIONS]"])
    parts = [f"# minilm {name}", _sentence(command.help), f"```text\n{usage}\n```"]
    if arguments:
        rows = [(f"`{_metavar(argument)}`", _default(argument), _sentence(argument.help)) for argument in arguments]
        parts += ["## Arguments", _table(("argument", "default", "meaning"), rows)]
    head = ("option", "value", "default", *(["setting"] if of_settings else []), "meaning")
    rows = [
        (
            _names(option),
            _value(option, hints[option.name]),
            _default(option),
            *([_setting_link(of_settings.get(option.name))] if of_settings else []),
            _sentence(option.help),
        )
        for option in _options(command)
    ]
    rows.append(("`-h`, `--help`", "", "", *([""] if of_settings else []), "Show the options and exit."))
    parts += ["## Options", _table(head, rows)]
    if of_settings:
        parts.append("What a setting may be in full is on the page [Settings](settings.md).")
    return "\n\n".join(parts)


def _metavar(argument: Any) -> str:
    metavar: str = argument.metavar + ("..." if argument.nargs < 0 else "")
    return metavar if argument.required else f"[{metavar}]"


def _options(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]


def _names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def _value(option: Any, hint: Any) -> str:
    if option.metavar:
        words = option.metavar.split("|")
        return _listed([word.lower() if word.isupper() and len(words) > 1 else f"`{word}`" for word in words])
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    return TYPES[kinds[0]]


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default if " " in parameter.show_default else f"`{parameter.show_default}`"
    if parameter.required:
        return "required"
    if not parameter.show_default or parameter.default in (None, False):
        return ""
    return f"`{parameter.default}`"


def _settings_of_flags() -> dict[str, str]:
    """Which setting each parameter of `distill` is: found by calling it with marks, and looking where they end up."""
    names = list(inspect.signature(app.distill).parameters)
    marks = {name: object() for name in names}

    class Seen(Exception):
        pass

    with mock.patch.object(load, "load_distill_settings", side_effect=Seen) as loading, suppress(Seen):
        app.distill(**marks)  # type: ignore[arg-type]  # marks are no options
    _, _, flags = loading.call_args.args
    by_mark = {id(mark): name for name, mark in marks.items()}
    return {by_mark[id(value)]: dotted for dotted, value in flags.items()}


def _setting_link(dotted: str | None) -> str:
    if dotted is None:
        return ""
    section = dotted.partition(".")[0]
    return f"[`{dotted}`](settings.md#{section})"


# --- Settings ----------------------------------------------------------------------------------------------------


def _settings_page() -> str:
    grouped = []
    loose = []
    for name, field in load.DistillSettings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            grouped.append(f"## {name}\n\n{_sentence(field.description)}\n\n{_fields(field.annotation, f'{name}.')}")
        else:
            loose.append(f"## {name}\n\n{_fields(load.DistillSettings, '', only=name)}")
    example = load.DistillSettings.model_validate(
        {"teacher": {"name": "bert-base-uncased"}, "student": {"config": "config.json"}}
    ).model_dump(mode="json", exclude_none=True)
    sections = "\n\n".join(grouped + loose)
    changeable = "\n".join(f"- `{name}`" for name in load.setting_names() if name in load.CHANGEABLE_MID_RUN)
    return f"""# Settings

Every setting of `minilm distill`, by its dotted path. Each can be given in a settings file (`--config`, `.yaml`,
`.toml` or `.json`) and by `--set KEY=VALUE`; those with an option of their own are listed with
[`minilm distill`](distill.md). An option or `--set` overrides the file; giving one setting by both is an error, and so
is a name that does not exist. Values of `--set` are read as YAML.

The column *mid-run* says what `minilm resume --set` may change: nothing that alters which sequences a step sees or what
is learnt from them.

{sections}

## A settings file

Every default, written down:

```yaml
{yaml.safe_dump(example, sort_keys=False).rstrip()}
```

## What may change mid-run

{changeable}
"""


def _fields(model: type[BaseModel], prefix: str, only: str | None = None) -> str:
    schema = model.model_json_schema()
    rows = []
    for name, found in schema["properties"].items():
        if only not in (None, name):
            continue
        dotted = f"{prefix}{name}"
        rows.append(
            (
                f"`{dotted}`",
                _type(found),
                "required" if name in schema.get("required", ()) else _shown(found.get("default")),
                "yes" if dotted in load.CHANGEABLE_MID_RUN else "",
                _sentence(found.get("description")),
            )
        )
    return _table(("setting", "type", "default", "mid-run", "meaning"), rows)


def _type(schema: Mapping[str, Any]) -> str:  # noqa: PLR0911  # a case for each kind of value
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        return _listed([_type(part) for part in schema["anyOf"] if part.get("type") != "null"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return _alternatives(schema["enum"])
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} × {_type(schema['prefixItems'][0])}"
        case "array":
            return f"list of {_type(schema['items'])}"
        case "object":
            return f"mapping to {_type(schema['additionalProperties'])}"
        case "string":
            return "path" if schema.get("format") == "path" else "text"
        case "integer" | "number" as kind:
            return kind + _bounds(schema)
        case "boolean":
            return "`true` or `false`"
    raise ValueError(f"no words for {schema}")


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    # Bounds that only keep a number inside a machine word say nothing to a person.
    bounds = {sign: schema[key] for key, sign in words.items() if key in schema and schema[key] < 2**31}
    said = [f"{sign} {bound:{',' if isinstance(bound, int) else 'g'}}" for sign, bound in bounds.items()]
    return f" {', '.join(said)}" if said else ""


def _shown(default: object) -> str:
    if default is None or default in ([], ()):
        return ""
    if isinstance(default, Mapping):
        return f"`{','.join(f'{key}={value:g}' for key, value in default.items())}`"
    if isinstance(default, list):
        return ", ".join(f"`{value}`" for value in default)
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


# --- Files -------------------------------------------------------------------------------------------------------


def _token_store_page() -> str:
    rows = [(f"`{path}`", kind, MANIFEST[path]) for path, kind in _leaves(store.Manifest)]
    assert len(rows) == len(MANIFEST)
    return f"""# The token store

A folder that `minilm tokenize` writes and `minilm distill` reads, memory-mapped. It is complete or absent.

{
        _table(
            ("file", "what it holds"),
            [
                ("`manifest.json`", "Format, tokenizer, counts and checksums; the fields are below."),
                (
                    "`shard-00000.npy`",
                    "Token ids, sequence after sequence, special tokens included: one dimension, in the smallest"
                    " unsigned type that holds the vocabulary (`uint16` up to 65,536 ids).",
                ),
                (
                    "`shard-00000.offsets.npy`",
                    "Where each sequence begins in the shard: `int64`, one entry more than there are sequences.",
                ),
            ],
        )
    }

Shards are numbered from 0 and closed after {store.SHARD_TOKENS:,} tokens. The files are plain NumPy arrays, without
pickled objects: sequence i of a shard is `ids[offsets[i]:offsets[i + 1]]`. The same text, tokenizer and options give
the same bytes, whatever the number of workers.

## manifest.json

Format version {store.FORMAT_VERSION}.

{_table(("field", "type", "meaning"), rows)}

## JSON lines instead

With `--output NAME.jsonl.gz`, `minilm tokenize` writes gzipped JSON lines, one list of token ids a line. `distill`
takes such a file as `--data NAME.jsonl.gz`, converts it once and keeps the store in the run folder, under `tokens/`. A
list of ids does not say which tokenizer made it, so only the range of the ids can be checked against the teacher.
"""


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path and type of every value in `model` and the models inside it."""
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        inner = [part for part in (field.annotation, *typing.get_args(field.annotation)) if _is_model(part)]
        if inner:
            is_list = typing.get_origin(field.annotation) is list
            yield from _leaves(inner[0], f"{prefix}{name}{'[]' if is_list else ''}.")
        else:
            found = schema["properties"][name]
            optional = any(part.get("type") == "null" for part in found.get("anyOf", ()))
            yield f"{prefix}{name}", _type(found) + (" or null" if optional else "")


def _is_model(candidate: object) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _plan_page() -> str:
    parts = [
        "# plan.json",
        "What a run trains on what, in numbers: what `minilm distill --dry-run --json` prints, what the run folder"
        " keeps as `plan.json` (there `measured` is null) and what the model card tells.",
    ]
    for name, field in plan.Plan.model_fields.items():
        section = next(part for part in (field.annotation, *typing.get_args(field.annotation)) if _is_model(part))
        rows = [(f"`{path}`", kind) for path, kind in _leaves(section, f"{name}.")]
        parts += [f"## {name}", _sentence(section.__doc__), _table(("field", "type"), rows)]
    return "\n\n".join(parts)


# --- Markdown ----------------------------------------------------------------------------------------------------


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _alternatives(values: Iterable[object]) -> str:
    return _listed([f"`{value}`" for value in values])


def _listed(values: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

    head = list(head)
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them; returns the exit status."""
    wanted = pages()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    if arguments == ["--check"]:
        stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
        for name in stale:
            print(f"docs/reference/{name} is not what the code says: run python docs/generate.py", file=sys.stderr)
        return 1 if stale else 0
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    FOLDER.mkdir(exist_ok=True)
    for name in there.keys() - wanted.keys():
        (FOLDER / name).unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
