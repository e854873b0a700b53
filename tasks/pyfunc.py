"""A bundle as an MLflow model that `mlflow.pyfunc.load_model` and `mlflow models serve` can use: see tasks.served.

The bundle's files stay at the root of the model, where all else reads them. The code is not pickled: MLflow keeps a copy of
tasks/served_model.py, which finds its bundle beside itself and everything else in the installed package.
"""

import base64
import io
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

PACKAGE = "anomalyclip-batch"
CODE = Path(__file__).with_name("served_model.py")


def save_pyfunc(bundle: Path, folder: Path) -> Path:
    """Write the model to a folder that does not exist yet; returns it."""
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        str(folder), python_model=str(CODE), signature=signature(), input_example=input_example(),
        pip_requirements=[f"{PACKAGE}=={version(PACKAGE)}"],
    )  # fmt: skip
    description = folder / "MLmodel"  # names the code by its path on this machine, and is read by the name alone
    description.write_text(description.read_text(encoding="utf-8").replace(str(CODE), CODE.name), encoding="utf-8")
    shutil.copytree(bundle, folder, dirs_exist_ok=True)
    return folder


def signature() -> Any:
    """MLflow's ModelSignature; `image` has any type, for bytes come as they are or as base64, beside URIs."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType, Array, Object, Property

    numbers = [Property(name, "long") for name in ("x", "y", "w", "h", "area")]
    region = Object([*numbers, Property("peak", "double")])
    given = Schema([ColSpec(AnyType(), "image"), ColSpec("string", "class_name", required=False)])
    found = [ColSpec("double", name, required=False) for name in ("score", "threshold", "p_value")]
    texts = [ColSpec("string", name, required=False) for name in ("decision", "mask", "error_kind", "error_detail")]
    return ModelSignature(given, Schema([*found, *texts, ColSpec(Array(region), "regions", required=False)]))


def input_example() -> pd.DataFrame:
    """One small image as base64."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).save(buffer, format="PNG")
    return pd.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()]})
