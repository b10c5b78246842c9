"""Multinomial logistic regression with an L2 penalty: scikit-learn's solution in fewer iterations.

With N images, minimise over weights W and biases b

    mean of -log softmax(x W + b)[y]  +  |W|^2 / (2 C N)

An encoder's features are strongly correlated, so plain L-BFGS takes many iterations. Along each principal
component the curvature is at most variance / 2 + 1 / (C N) (Boehning 1992). Dividing by the square root of
this bound preconditions the problem, and L-BFGS then needs tens of iterations. The components are computed
once for all penalties. There are at most as many as images or features, whichever is smaller.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.optimize
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray

_MAX_ITERATIONS = 10_000  # it usually takes tens
_TOLERANCE = 1e-5  # largest entry of the preconditioned gradient; scikit-learn stops at 1e-4 of the plain one
_REMEMBERED = 20  # L-BFGS history size
_LEAST_VARIANCE = (
    1e-12  # of the largest; below it a direction holds only rounding errors, and its weights are 0
)

Features = Float[np.ndarray, "image feature"]
Flat = NDArray[np.float64]  # weights and bias of the first class, then of the next


@dataclass(frozen=True)
class Linear:
    """A fitted classifier; also the warm start for another penalty."""

    weights: Float64[np.ndarray, "klass feature"]
    biases: Float64[np.ndarray, " klass"]
    inner: Float64[np.ndarray, "klass component"]  # weights in principal-component coordinates

    def score(self, features: Features) -> Float64[np.ndarray, "image klass"]:
        """Return the log-likelihood of each class, up to a constant per image."""
        scores: Float64[np.ndarray, "image klass"] = (
            features.astype(np.float64) @ self.weights.T + self.biases
        )
        return scores


@dataclass(frozen=True)
class Problem:
    """Training images in principal-component coordinates, with their classes."""

    components: Float64[np.ndarray, "image component"]
    directions: Float64[np.ndarray, "feature component"]
    variances: Float64[np.ndarray, " component"]
    mean: Float64[np.ndarray, " feature"]
    truth: Int64[np.ndarray, " image"]
    num_classes: int

    @classmethod
    def of(cls, features: Features, truth: Int64[np.ndarray, " image"], *, num_classes: int) -> "Problem":
        """Prepare the problem; `truth` numbers the classes from 0.

        Time: images x features x min(images, features) operations in float64.
        """
        precise = features.astype(np.float64)
        mean = precise.mean(axis=0)
        precise -= mean
        num, is_wide = len(precise), len(precise) < precise.shape[1]
        variances, axes = scipy.linalg.eigh((precise @ precise.T if is_wide else precise.T @ precise) / num)
        kept = variances > _LEAST_VARIANCE * max(variances[-1], np.finfo(np.float64).tiny)
        variances, axes = variances[kept], axes[:, kept]
        directions = precise.T @ (axes / np.sqrt(num * variances)) if is_wide else axes
        return cls(precise @ directions, directions, variances, mean, truth, num_classes)

    def fit(self, *, inverse_penalty: float, start: Linear | None = None) -> Linear:
        """Fit with the inverse penalty C as scikit-learn defines it, starting from `start` or from 0.

        For two classes scikit-learn uses one weight vector, the difference of our two. Half the C gives the
        same solution.
        """
        share = 0.5 if self.num_classes == 2 else 1.0
        penalty = 1.0 / (share * inverse_penalty * len(self.truth))
        unit = 1.0 / np.sqrt(self.variances / 2.0 + penalty)
        inner, biases = np.zeros((self.num_classes, len(unit))), np.zeros((self.num_classes, 1))
        if start is not None:
            inner, biases = start.inner, (start.biases + start.weights @ self.mean)[:, None]
        found = scipy.optimize.minimize(
            self._evaluate,
            np.concatenate([inner / unit, biases], axis=1).ravel(),
            args=(unit, penalty),
            jac=True,
            method="L-BFGS-B",
            options={
                "maxiter": _MAX_ITERATIONS, "maxfun": 2 * _MAX_ITERATIONS, "maxcor": _REMEMBERED,
                "gtol": _TOLERANCE, "ftol": 8.0 * float(np.finfo(np.float64).eps),
            },
        )  # fmt: skip
        assert found.nit < _MAX_ITERATIONS, "a strictly convex problem did not converge"
        scaled = found.x.reshape(self.num_classes, -1)
        inner = scaled[:, :-1] * unit
        weights = inner @ self.directions.T
        return Linear(weights, scaled[:, -1] - weights @ self.mean, inner)

    def _evaluate(self, flat: Flat, unit: Flat, penalty: float) -> tuple[float, Flat]:
        """Return the objective and its gradient; `flat`: weights and bias per class, concatenated."""
        scaled = flat.reshape(self.num_classes, -1)
        inner = scaled[:, :-1] * unit
        logits = self.components @ inner.T
        logits += scaled[:, -1]
        logits -= logits.max(axis=1, keepdims=True)
        rows = np.arange(len(logits))
        wanted = logits[rows, self.truth]
        shares = np.exp(logits, out=logits)
        sums = shares.sum(axis=1)
        value = penalty / 2.0 * np.square(inner).sum() + (np.log(sums) - wanted).mean()
        shares /= sums[:, None]
        shares[rows, self.truth] -= 1.0
        shares /= len(shares)
        gradient = np.empty_like(scaled)
        # This order makes the product twice as fast.
        gradient[:, :-1] = (shares.T @ self.components + penalty * inner) * unit
        gradient[:, -1] = shares.sum(axis=0)
        return float(value), gradient.ravel()
