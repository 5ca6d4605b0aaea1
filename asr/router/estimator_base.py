"""What scikit-learn expects of an estimator, with it or without it.

Where scikit-learn is installed its ``BaseEstimator`` and ``ClassifierMixin`` are the base, so that
pipelines, searches and ``clone`` take the estimator for one of their own. Where it is not, the few
methods of it that users call stand in.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from typing import Any, Self

import numpy as np


class _Parameters:
    """``get_params``, ``set_params`` and ``score`` as scikit-learn has them."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **values: Any) -> Self:
        """Set constructor's arguments.

        Raises:
            ValueError: an unknown one.
        """
        known = self.get_params()
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"unknown parameter {name!r}; there are: {', '.join(known)}")
            setattr(self, name, value)
        return self

    def score(self, X: Any, y: Any) -> float:
        """Return the share of rows whose class is right."""
        predict: Any = self.predict  # type: ignore[attr-defined]
        return float(np.mean(predict(X) == np.asarray(y)))


def _bases() -> tuple[type, ...]:
    if importlib.util.find_spec("sklearn") is None:
        return (_Parameters,)
    base: Any = importlib.import_module("sklearn.base")
    return (base.ClassifierMixin, base.BaseEstimator)


Estimator: Any = type("Estimator", _bases(), {"__doc__": "Base of estimators; see the module."})


def not_fitted(estimator: Any) -> Exception:
    """Return scikit-learn's exception where it is there, else one of its kind."""
    message = f"this {type(estimator).__name__} is not fitted yet; call fit or partial_fit first"
    if importlib.util.find_spec("sklearn") is None:
        return ValueError(message)
    made: Exception = importlib.import_module("sklearn.exceptions").NotFittedError(message)
    return made


def plain_array(rows: Any, estimator: Any, first: bool) -> Any:
    """Check (n, d) rows, as they are where they are a torch tensor, else as a numpy array.

    Sets ``n_features_in_`` at the first call.

    Raises:
        TypeError: a sparse matrix.
        ValueError: not two-dimensional, empty, complex, no numbers, not finite, or of another width
            than at the first call.
    """
    name = type(estimator).__name__
    if hasattr(rows, "toarray"):
        raise TypeError("X is a sparse matrix; dense data is needed: use X.toarray()")
    is_tensor = hasattr(rows, "detach")
    array: Any = rows if is_tensor else np.asarray(rows)
    if not is_tensor:
        if array.dtype.kind == "c":
            raise ValueError("Complex data not supported")
        if array.dtype.kind not in "fiub":
            array = array.astype(np.float64)
    if array.ndim != 2:
        raise ValueError(
            f"X has shape {tuple(array.shape)}; give one row per sample, (n, d). Reshape your data"
            " using array.reshape(1, -1) if it is a single sample"
        )
    for axis, what in ((0, "sample"), (1, "feature")):
        if array.shape[axis] == 0:
            raise ValueError(
                f"Found array with 0 {what}(s) (shape={tuple(array.shape)}) while a minimum of 1 is"
                f" required by {name}."
            )
    finite = array.isfinite().all() if is_tensor else np.isfinite(array).all()
    if not bool(finite):
        raise ValueError(f"Input X contains NaN or infinity, which {name} does not accept.")
    if first:
        estimator.n_features_in_ = int(array.shape[1])
    elif array.shape[1] != estimator.n_features_in_:
        raise ValueError(
            f"X has {array.shape[1]} features, but {name} is expecting"
            f" {estimator.n_features_in_} features as input"
        )
    return array


def plain_labels(labels: Any, rows: int) -> np.ndarray:
    """Check (n,) class labels and return them as a numpy array.

    A column (n, 1) is taken with scikit-learn's warning, where it is installed.

    Raises:
        ValueError: there are none, not one for each row, or they are real numbers.
    """
    if labels is None:
        raise ValueError("requires y to be passed, but the target y is None")
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    found = np.asarray(labels)
    if found.ndim == 2 and found.shape[1] == 1:
        _warn_of_a_column()
        found = found.ravel()
    if found.ndim != 1 or len(found) != rows:
        raise ValueError(f"y has shape {found.shape}; need ({rows},), a label for each row")
    if found.dtype.kind == "f":
        if not np.isfinite(found).all():
            raise ValueError("Input y contains NaN or infinity.")
        if (found != np.round(found)).any():
            raise ValueError("Unknown label type: continuous; y must hold classes")
    return found


def _warn_of_a_column() -> None:
    message = "A column-vector y was passed when a 1d array was expected: give y.ravel()"
    category: Any = UserWarning
    if importlib.util.find_spec("sklearn") is not None:
        category = importlib.import_module("sklearn.exceptions").DataConversionWarning
    warnings.warn(message, category, stacklevel=4)
