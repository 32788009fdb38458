from __future__ import annotations

import pytest
from pydantic import BaseModel

from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.export import ExportSettings
from minilm_cli.settings.flags import docstrings, options, section_of, setting_names
from minilm_cli.settings.resume import ResumeSettings
from minilm_cli.settings.tokenize import TokenizeSettings

from .settings_helpers import load, values_of


@pytest.mark.parametrize("model", [DistillSettings, TokenizeSettings, ResumeSettings, ExportSettings])
def test_every_setting_is_documented(model: type[BaseModel]) -> None:
    def undocumented(model: type[BaseModel]) -> list[str]:
        sections = [section for field in model.model_fields.values() if (section := section_of(field))]
        missing = [f"{model.__name__}.{name}" for name in model.model_fields if name not in docstrings(model)]
        return missing + [name for section in sections for name in undocumented(section)]

    assert undocumented(model) == []


def test_option_is_described_by_its_field() -> None:
    by_name = {option.name: option for option in options(DistillSettings)}
    batch_size, device = by_name["--batch-size"], by_name["--device"]
    assert (batch_size.path, batch_size.metavar, batch_size.default) == ("training.batch_size", "N", "256")
    assert batch_size.help == "Sequences in an optimiser step, over all processes."
    assert (device.metavar, device.default, device.panel) == ("auto|DEVICE", "auto", "Training")
    assert by_name["--schedule"].metavar == "linear|cosine|constant"
    assert by_name["--relation-heads"].metavar == "auto|N"
    assert by_name["--teacher-layer"].metavar == "auto|N,..."
    assert by_name["--relations"].default == "qq=1,kk=1,vv=1"
    assert by_name["--compile"].default == "no-compile"
    assert {option.name: option for option in options(ExportSettings)}["--private"].default == "private"
    assert [option.name for option in by_name.values() if option.required] == ["--teacher"]


def test_setting_names_are_the_flattened_settings() -> None:
    assert setting_names(DistillSettings) == list(values_of(load()))
