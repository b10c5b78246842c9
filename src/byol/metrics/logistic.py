"""Multinomial logistic regression with an L2 penalty: scikit-learn's solution in fewer iterations.

With N images, minimise over weights W and biases b

    mean of -log softmax(x W + b)[y]  +  |W|^2 / (2 C N)

Features of an encoder are much alike, so L-BFGS on them takes many iterations. In the directions of
their principal components the curvature is at most variance / 2 + 1 / (C N) (Boehning 1992), each direction
for itself. Weights are therefore sought in units of its square root, where L-BFGS needs tens. The components
are found once for all penalties; of fewer images than features there are no more than images.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.optimize
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray

_MAX_ITERATIONS = 10_000  # tens are usual
_TOLERANCE = 1e-5  # largest entry of the gradient, in the units above; scikit-learn stops at 1e-4 in its own
_REMEMBERED = 20  # steps that L-BFGS estimates the curvature from
_LEAST_VARIANCE = 1e-12  # of the largest: a direction below holds rounding alone, and its weights are 0

Features = Float[np.ndarray, "image feature"]
Flat = NDArray[np.float64]  # a class's weights and bias, then the next's


@dataclass(frozen=True)
class Linear:
    """A fitted classifier, and where to go on from for another penalty."""

    weights: Float64[np.ndarray, "klass feature"]
    biases: Float64[np.ndarray, " klass"]
    inner: Float64[np.ndarray, "klass component"]  # the weights in the directions of the components

    def score(self, features: Features) -> Float64[np.ndarray, "image klass"]:
        """The logarithm of each class's likelihood, but for a constant of the image."""
        scores: Float64[np.ndarray, "image klass"] = (
            features.astype(np.float64) @ self.weights.T + self.biases
        )
        return scores


@dataclass(frozen=True)
class Problem:
    """Training images in the directions of their principal components, with their classes."""

    components: Float64[np.ndarray, "image component"]
    directions: Float64[np.ndarray, "feature component"]
    variances: Float64[np.ndarray, " component"]
    mean: Float64[np.ndarray, " feature"]
    truth: Int64[np.ndarray, " image"]
    num_classes: int

    @classmethod
    def of(cls, features: Features, truth: Int64[np.ndarray, " image"], *, num_classes: int) -> "Problem":
        """`truth` counts the classes from 0. Takes images x features x the smaller of both, in float64."""
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
        """The classifier with the inverse penalty C, as scikit-learn defines it; from `start` on, or from 0.

        Of two classes scikit-learn has one vector of weights, the difference of ours: with half the C both
        have the same solution.
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
        """What is minimised, and its gradient; `flat` holds a class's weights and bias, then the next's."""
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
        # In this order the product is twice as fast.
        gradient[:, :-1] = (shares.T @ self.components + penalty * inner) * unit
        gradient[:, -1] = shares.sum(axis=0)
        return float(value), gradient.ravel()
