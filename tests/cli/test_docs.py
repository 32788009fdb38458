"""The documentation agrees with the program: reference pages, links, options, names, files."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from minilm_cli import __version__
from minilm_cli.cli.app import app
from minilm_cli.runs.folder import RunFolder
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.flags import setting_names
from minilm_cli.settings.load import load_distill_settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "minilm_cli").with_suffix("").parts)
    for path in (ROOT / "minilm_cli").rglob("*.py")
    if path.stem != "__init__"
)

#: Options of other programs.
FOREIGN = {"--check", "--config-file", "--index-url", "--kills", "--minutes", "--strict"} | {
    # torchrun's and Slurm's
    *("--standalone", "--nproc-per-node", "--nnodes", "--max-restarts", "--log-dir", "--tee"),
    *("--rdzv-id", "--rdzv-backend", "--rdzv-endpoint"),
    *("--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--signal", "--requeue", "--open-mode"),
}

IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", _text(page), flags=re.MULTILINE | re.DOTALL)


def test_the_reference_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_have_targets(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.is_file(), target
        assert not anchor or anchor in _anchors(file), target


def _options() -> set[str]:
    group = typer.main.get_command(app)
    commands = [group, *getattr(group, "commands", {}).values()]
    return {
        name for command in commands for option in command.params for name in (*option.opts, *option.secondary_opts)
    }


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_options_exist(page: Path) -> None:
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", _text(page)))
    assert mentioned - _options() - FOREIGN - {"--help"} == set()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name != "reference"], ids=lambda page: page.stem
)
def test_names_of_code_exist(page: Path) -> None:
    settings = setting_names(DistillSettings)
    for name in re.findall(r"`((?:\w+)(?:\.\w+)+)(?:\(\))?`", _prose(page)):
        package, module, *rest = name.removeprefix("minilm_cli.").split(".")
        if f"{package}.{module}" not in MODULES or name in settings:
            continue
        value: object = importlib.import_module(f"minilm_cli.{package}.{module}")
        for part in rest:
            assert hasattr(value, part), name
            value = getattr(value, part)


def test_the_table_of_packages_is_complete() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", _text(DOCS / "data-flow.md"), re.MULTILINE)
    assert sorted(rows) == sorted({module.partition(".")[0] for module in MODULES if "." in module})


def test_the_documented_layers_are_the_enforced_layers() -> None:
    contracts = tomllib.loads(_text(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert "\n".join(layers) in _text(DOCS / "data-flow.md")


def _files_of_a_run() -> Iterator[str]:
    for file in vars(RunFolder(Path("run"))).values():
        if file != Path("run"):
            yield str(file.relative_to("run"))


def test_every_file_of_a_run_is_documented() -> None:
    for name in _files_of_a_run():
        assert re.search(rf"`{re.escape(name)}/?`", _text(DOCS / "run-folder.md")), name


def test_settings_files_in_the_documentation_load(tmp_path: Path) -> None:
    texts = [
        text for page in PAGES for text in re.findall(r"^```yaml\n(.*?)^```$", _text(page), re.MULTILINE | re.DOTALL)
    ]
    assert texts
    for text in texts:
        file = tmp_path / "settings.yaml"
        file.write_text(text, encoding="utf-8")
        assert load_distill_settings(file, (), {"teacher.name": "t", "student.config": "s"})
        assert isinstance(yaml.safe_load(text), dict)


def _steps(workflow: str) -> list[dict[str, object]]:
    """The steps of all jobs of a workflow."""
    jobs = yaml.safe_load(_text(ROOT / ".github" / "workflows" / f"{workflow}.yml"))["jobs"]
    return [step for job in jobs.values() for step in job.get("steps", ())]


def test_workflows_refer_to_existing_files() -> None:
    assert "bash .ci/run" in [step.get("run") for step in _steps("ci")]
    for workflow in (ROOT / ".github" / "workflows").iterdir():
        jobs = yaml.safe_load(_text(workflow))["jobs"]
        for name, job in jobs.items():
            assert set(job.get("needs", ())) <= {*jobs} or job["needs"] in jobs, (workflow.name, name)
            assert (ROOT / job.get("uses", ".")).exists(), (workflow.name, name)
        commands = [str(step["run"]) for step in _steps(workflow.stem) if "run" in step]
        for path in re.findall(r"(?<![\w./-])(?:docs|minilm_cli|\.ci)/[\w./-]+", "\n".join(commands)):
            assert (ROOT / path).exists(), path


def test_only_the_publishing_job_can_get_a_pypi_token() -> None:
    jobs = yaml.safe_load(_text(ROOT / ".github" / "workflows" / "release.yml"))["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", ())] == ["publish"]
    assert jobs["publish"]["needs"] == ["checks", "build"]
    assert any("gh-action-pypi-publish" in step.get("uses", "") for step in jobs["publish"]["steps"])


def test_hooks_run_the_commands_of_the_ci() -> None:
    (local,) = yaml.safe_load(_text(ROOT / ".pre-commit-config.yaml"))["repos"]
    assert local["repo"] == "local"  # nothing is downloaded
    ci = _text(ROOT / ".ci" / "run")
    for hook in local["hooks"]:
        assert hook["language"] == "system"
        assert " ".join(hook["entry"].split()[:2]) in ci


@pytest.mark.parametrize("name", ["install-and-demo", "test"])
def test_the_readme_has_the_commands_that_ci_runs(name: str) -> None:
    block = re.search(rf"^<!-- ci: {name} -->\n```bash\n((?:.+\n)+?)```$", _text(ROOT / "README.md"), re.MULTILINE)
    assert block
    # A newcomer may type them in any shell, PowerShell among them: programs, words and double quotes only.
    for command in block[1].splitlines():
        assert re.fullmatch(r'[\w./ "\[\]-]+', command), command


def test_the_changelog_has_this_version() -> None:
    assert f"## [{__version__}]" in _text(ROOT / "CHANGELOG.md")
