"""The code of a registered version: MLflow keeps a copy beside the bundle and runs it where the model is loaded."""

from pathlib import Path

from mlflow.models import set_model

from tasks.served import ServedModel

set_model(ServedModel(Path(__file__).parent))
