"""Writes the reference pages, `docs/reference/*.md`, from the code: commands, settings, files.

python docs/generate.py          write the pages
python docs/generate.py --check  fail if a page differs from the code
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import BaseModel

from minilm_cli.cli.app import app
from minilm_cli.cli.usage import Row, rows, usage
from minilm_cli.runs import plan
from minilm_cli.settings.distill import CHANGEABLE_MID_RUN, DistillSettings
from minilm_cli.settings.flags import as_typed, docstrings, section_of, setting_names
from minilm_cli.tokens import store

FOLDER = Path(__file__).parent / "reference"
HEADER = "<!-- Written by docs/generate.py from the code. Edit the code, not this page. -->\n\n"

#: The meaning of each field of a token store's manifest. A field that is missing here is an error.
MANIFEST = {
    "format_version": "Version of this layout. A reader refuses a newer one.",
    "written_by": "Version of minilm that wrote it.",
    "tokenizer.name": "Hub name or folder of the tokenizer.",
    "tokenizer.revision": "Branch, tag or commit that was requested.",
    "tokenizer.vocabulary_sha256": "SHA-256 of the sorted vocabulary; `distill` compares it with the teacher's.",
    "tokenizer.vocabulary_size": "1 + the largest token id. It determines the type of the ids.",
    "tokenizer.special_ids": "Ids of the special tokens, ascending.",
    "max_length": "Largest length of a sequence in tokens, special tokens included.",
    "sequences": "Sequences in all shards.",
    "tokens": "Tokens in all shards.",
    "length_histogram": "Entry n: the number of sequences with n tokens.",
    "shards[].file": "File of the token ids. The offsets are next to it, in `….offsets.npy`.",
    "shards[].sequences": "Sequences in this shard.",
    "shards[].tokens": "Tokens in this shard.",
    "shards[].sha256": "SHA-256 of the file of token ids.",
    "shards[].offsets_sha256": "SHA-256 of the file of offsets.",
}


def pages() -> dict[str, str]:
    """The text of every page by the name of its file."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="minilm", **group.context_settings)
    found = {"minilm.md": _overview(group, context)}
    for name, command in group.commands.items():
        found[f"{name}.md"] = _command_page(name, command, typer.Context(command, parent=context, info_name=name))
    found["settings.md"] = _settings_page()
    found["token-store.md"] = _token_store_page()
    found["plan.md"] = _plan_page()
    return {name: HEADER + text.rstrip() + "\n" for name, text in found.items()}


# --- Commands ----------------------------------------------------------------------------------------------------


def _overview(group: Any, context: typer.Context) -> str:
    commands = [(f"[`minilm {name}`]({name}.md)", command.help) for name, command in group.commands.items()]
    return f"""# minilm

{group.help}

```text
{usage(group, context)}
python -m minilm_cli [OPTIONS] COMMAND [ARGUMENTS]
```

{_table(("command", "what it does"), commands)}

## Options

{_table(("option", "meaning"), [(_names(row), row.help) for row in rows(group, context)])}

## Shell completion

`minilm --install-completion` installs it for bash, zsh, fish and PowerShell; it works in new terminals. It completes
commands, options and values: `--init` and other options with a choice, `--set optimizer.`, presets and files after
`--student-config`, and runs in `runs/` after `minilm resume` and `minilm export`.
"""


def _command_page(name: str, command: Any, context: typer.Context) -> str:
    panels: dict[str, list[Row]] = {}
    for row in rows(command, context):
        panels.setdefault(row.panel, []).append(row)
    panels["Options"] = panels.pop("Options")  # last, as in --help
    parts = [f"# minilm {name}", command.help, f"```text\n{usage(command, context)}\n```"]
    parts += ["For example:", f"```text\n{command.epilog}\n```"]
    for title, group in panels.items():
        kind = "argument" if title == "Arguments" else "option"
        parts += [f"## {title}", _options_table(group, kind, linked=name == "distill")]
    if name == "distill":
        parts.append("The page [Settings](settings.md) describes the settings in full.")
    return "\n\n".join(parts)


def _options_table(group: list[Row], kind: str, *, linked: bool) -> str:
    """`linked`: whether the page of settings, which has those of distill, has these."""
    linked = linked and any("." in row.path for row in group)
    return _table((kind, "meaning"), [(_names(row), _with_details(row.help, _details(row, linked))) for row in group])


def _details(row: Row, linked: bool) -> Iterator[str]:
    """The value of an option, its default, and if `linked`, its setting."""
    if row.metavar:
        yield _alternatives(row.metavar.split("|"))
    if row.required:
        yield "required"
    elif row.default:
        yield f"default: {row.default if ' ' in row.default else _code(row.default)}"
    if linked and row.path:
        yield f"setting: [`{row.path}`](settings.md#{row.path.partition('.')[0]})"


def _names(row: Row) -> str:
    return ", ".join(map(_code, row.names))


# --- Settings ----------------------------------------------------------------------------------------------------


def _settings_page() -> str:
    example = DistillSettings.model_validate(
        {"teacher": {"name": "bert-base-uncased"}, "student": {"config": "config.json"}}
    ).model_dump(mode="json", exclude_none=True)
    sections = "\n\n".join(_section(name) for name in DistillSettings.model_fields)
    changeable = "\n".join(f"- `{name}`" for name in setting_names(DistillSettings) if name in CHANGEABLE_MID_RUN)
    return f"""# Settings

All settings of `minilm distill`, by dotted path. A setting can be given in a settings file (`--config`; `.yaml`,
`.toml` or `.json`), by `--set KEY=VALUE`, and by its own option if it has one; the page [`minilm distill`](distill.md)
lists the options. An option or `--set` overrides the file. It is an error to give a setting both by its option and by
`--set`, or to name a setting that does not exist. Values of `--set` are read as YAML.

*May change mid-run* marks what `minilm resume --set` may change: nothing that alters which sequences a step sees, or
the objective.

{sections}

## A settings file

All defaults:

```yaml
{yaml.safe_dump(example, sort_keys=False).rstrip()}
```

## What may change mid-run

{changeable}
"""


def _section(name: str) -> str:
    section = section_of(DistillSettings.model_fields[name])
    if section is None:
        return f"## {name}\n\n{_fields(DistillSettings, '', [name])}"
    about = docstrings(DistillSettings)[name]
    return f"## {name}\n\n{about}\n\n{_fields(section, f'{name}.', section.model_fields)}"


def _fields(model: type[BaseModel], prefix: str, names: Iterable[str]) -> str:
    schema = model.model_json_schema()
    lines = []
    for name in names:
        found, path = schema["properties"][name], f"{prefix}{name}"
        default = _shown(found.get("default"))
        details = [_type(found)]
        if name in schema.get("required", ()):
            details.append("required")
        elif default:
            details.append(f"default: {default}")
        if path in CHANGEABLE_MID_RUN:
            details.append("may change mid-run")
        lines.append((_code(path), _with_details(docstrings(model)[name], details)))
    return _table(("setting", "meaning"), lines)


def _type(schema: Mapping[str, Any]) -> str:  # noqa: PLR0911  # a case for each kind of value
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        return _listed([_type(part) for part in schema["anyOf"] if part.get("type") != "null"])
    if "const" in schema:
        return _code(schema["const"])
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


def _shown(default: Any) -> str:
    if isinstance(default, list):
        return ", ".join(map(_shown, default))
    return _code(str(default).lower() if isinstance(default, bool) else as_typed(default))


# --- Files -------------------------------------------------------------------------------------------------------


def _token_store_page() -> str:
    fields = [(_code(path), _with_details(MANIFEST[path], [kind])) for path, kind in _leaves(store.Manifest)]
    assert len(fields) == len(MANIFEST)
    files = [
        ("`manifest.json`", "Format, tokenizer, counts and checksums; the fields are below."),
        (
            "`shard-00000.npy`",
            "Token ids of all sequences, one after the other, special tokens included: one dimension, in the smallest"
            " unsigned type that holds the vocabulary (`uint16` up to 65,536 ids).",
        ),
        (
            "`shard-00000.offsets.npy`",
            "Start of each sequence in the shard: `int64`, one entry more than there are sequences.",
        ),
    ]
    return f"""# The token store

A folder that `minilm tokenize` writes and `minilm distill` reads, memory-mapped. It is complete or absent.

{_table(("file", "content"), files)}

Shards are numbered from 0 and closed after {store.SHARD_TOKENS:,} tokens. The files are plain NumPy arrays, without
pickled objects: sequence i of a shard is `ids[offsets[i]:offsets[i + 1]]`. The same text, tokenizer and options give
the same bytes, whatever the number of workers.

## manifest.json

Format version {store.FORMAT_VERSION}.

{_table(("field", "meaning"), fields)}

## JSON lines instead

With `--output NAME.jsonl.gz`, `minilm tokenize` writes gzipped JSON lines with a list of token ids on each line.
`distill` takes such a file as `--data NAME.jsonl.gz`, converts it once and keeps the store in the run folder, under
`tokens/`. A list of ids does not name its tokenizer, so only the range of the ids is checked against the teacher.
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
        "What a run trains and on what data, in numbers. `minilm distill --dry-run --json` prints it, the run folder"
        " keeps it as `plan.json` (with `measured` null), and the model card shows it.",
    ]
    for name, field in plan.Plan.model_fields.items():
        section = next(part for part in (field.annotation, *typing.get_args(field.annotation)) if _is_model(part))
        fields = [(_code(path), kind) for path, kind in _leaves(section, f"{name}.")]
        parts += [f"## {name}", _sentence(section.__doc__), _table(("field", "type"), fields)]
    return "\n\n".join(parts)


# --- Markdown ----------------------------------------------------------------------------------------------------


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _alternatives(values: Iterable[str]) -> str:
    return _listed(list(map(_code, values)))


def _listed(values: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))


def _with_details(meaning: str, details: Iterable[str]) -> str:
    """A meaning with its details below: a phone has no room for a column for each of them."""
    line = "; ".join(details)
    return f"{meaning}<br><small>{line}</small>" if line else meaning


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

    head = list(head)
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them with the code; returns the exit status."""
    wanted = pages()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    if arguments == ["--check"]:
        stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
        for name in stale:
            print(f"docs/reference/{name} differs from the code: run python docs/generate.py", file=sys.stderr)
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
