"""Flows and command line agree in what their parameters are, what they mean and what they are by default."""

import inspect
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows.arguments import build_parser
from flows.calibrate import calibrate
from flows.evaluate import evaluate
from flows.export import export
from flows.ingest import ingest
from flows.nightly import nightly
from flows.score import score
from flows.train import train

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
