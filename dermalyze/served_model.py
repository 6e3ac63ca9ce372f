"""What MLflow runs to let a logged model answer: a file that travels with it, and no pickle."""

from __future__ import annotations

import base64
import io
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from dermalyze.prediction.predictor import SkinLesionPredictor
from dermalyze.prediction.results import Failure, Prediction
from dermalyze.tracking.logged_model import ARTIFACT, IMAGE, PROBABILITY, UNCERTAINTY


class ServedModel(PythonModel):  # type: ignore[misc] # MLflow's classes are not typed
    """A checkpoint that answers a table of images, a row each."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint that lies beside this file."""
        self._predictor = SkinLesionPredictor(context.artifacts[ARTIFACT])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return a row for each image: class, confidence, probabilities, uncertainty, disclaimer.

        Probabilities are as the model gives them: what `evaluate` fits later lies in the run's
        folder, and a logged model is the checkpoint alone.

        Args:
            context: not needed any more.
            model_input: the bytes of a JPEG, PNG, BMP or WebP file, or these in base64, in the
                column `image`; and what is known of each besides, for a model that can be told.
            params: there are none.

        Raises:
            MlflowException: an image that cannot be used, by its position; nothing is answered.
        """
        if not isinstance(model_input, pd.DataFrame):  # arrays, which cut zeros off from bytes
            raise _refused("`instances` cannot carry files. Send them as `dataframe_records`.")
        images = [_stream(value, at) for at, value in enumerate(model_input[IMAGE])]
        told = model_input.drop(columns=IMAGE).to_dict(orient="records")
        known = [{str(name): v for name, v in row.items() if not pd.isna(v)} for row in told]
        results = list(self._predictor.predict_batch(images, metadata=known))
        failures = [result for result in results if isinstance(result, Failure)]
        if failures:
            raise _refused(
                f"{len(failures)} of {len(results)} images cannot be used. The first of them: "
                f"{failures[0].error}"
            )
        return pd.DataFrame([_row(one) for one in results if isinstance(one, Prediction)])


def _stream(value: object, at: int) -> io.BytesIO:
    if isinstance(value, bytes):
        return io.BytesIO(value)
    try:
        return io.BytesIO(base64.b64decode(str(value), validate=True))
    except ValueError as error:  # also of letters that base64 has not
        raise _refused(f"image {at}: neither bytes nor base64 ({error})") from error


def _refused(why: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(why)


def _row(result: Prediction) -> dict[str, Any]:
    return {
        "predicted_class": result.predicted_class,
        "confidence": result.confidence,
        **{PROBABILITY + name: value for name, value in result.probabilities.items()},
        **{name: result.uncertainty[name] for name in UNCERTAINTY},
        "disclaimer": result.disclaimer,
    }


set_model(ServedModel())
