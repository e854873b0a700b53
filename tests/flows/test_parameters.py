"""Flows and command line agree in what their parameters are, what they mean and what they are by default."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from flows.arguments import build_parser
from flows.calibrate import calibrate
from flows.evaluate import evaluate
from flows.export import export
from flows.ingest import ingest
from flows.nightly import nightly
from flows.score import score
from flows.train import train
from tests.flows.conftest import Command

ARGUMENTS = {"ingest": (ingest, ["here"]), "train": (train, []), "score": (score, []), "evaluate": (evaluate, []),
             "nightly": (nightly, ["here"]), "calibrate": (calibrate, []),
             "export": (export, ["--format", "coco"])}  # fmt: skip


@pytest.mark.parametrize("command", ARGUMENTS)
def test_defaults_choices_and_descriptions_are_the_same(command: str, capsys: pytest.CaptureFixture[str]):
    flow: Flow[Any, Any] = ARGUMENTS[command][0]
    required = ARGUMENTS[command][1]
    given = vars(build_parser().parse_args([command, *required, "--collection", "parts"]))
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name, field in parameter_schema(flow).properties.items():
        default = inspect.signature(flow.fn).parameters[name].default
        if name in ("store", "collections"):
            continue  # the command's default is the environment's; it repeats --collection
        if default is not inspect.Parameter.empty:
            assert given[name] == default, name
        assert field["description"] in told, name
        assert all(str(choice) in told for choice in field.get("enum", [])), name


@pytest.mark.parametrize(
    ("flow", "name", "before"),
    [
        (nightly, "source", ""),
        (ingest, "source", ""),
        (score, "store", ""),
        (export, "output", ""),
        (train, "backbone", "ViT-L-14-336-quickgelu:"),
        (evaluate, "backbone", "ViT-L-14-336-quickgelu:"),
    ],
)
def test_the_form_refuses_credentials_in_a_uri(flow: Flow[Any, Any], name: str, before: str):
    schema = parameter_schema(flow).model_dump_for_openapi()
    schema = {"type": "object", "properties": {name: schema["properties"][name]}}  # validate returns errors
    for uri in ("https://user:hush@host/a", "https://user@host", "s3://key:hush@bucket/line@4"):
        assert validate({name: before + uri}, schema), uri
    for uri in ("s3://bucket/line@4/a@b.png", "https://host/@/a", "file:///a@b", "/a@b/c", "a@b"):
        assert not validate({name: before + uri}, schema), uri


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest", "https://user:hush@host/a", "--collection", "parts"],
        ["score", "--collection", "parts", "--store", "s3://key:hush@bucket/store"],
        ["train", "--collection", "parts", "--backbone", "ViT-B-32:https://user:hush@host/weights.safetensors"],
        ["reproduce", "--root", ".", "--checkpoint", "mvtec=https://user:hush@host/epoch_15.pth"],
    ],
)
def test_the_command_refuses_credentials_in_a_uri_before_anything_keeps_them(
    arguments: list[str], anomalyclip: Command, tmp_path: Path
):
    answer = anomalyclip(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("anomalyclip: a URI must not hold a user or a password")
    assert "hush" not in answer.err
    assert not list(tmp_path.iterdir())
