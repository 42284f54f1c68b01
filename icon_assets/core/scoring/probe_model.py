"""The correlation of the probes of a set: a normal model of the influences of a sample on all probes.

It is learned from samples that were scored on every probe. It gives the probes that say most about the mean over all of
them for their cost, and estimates a sample's contribution when only some of its probes were scored."""

from dataclasses import dataclass
from math import sqrt

import numpy as np

_FOLDS = 8


@dataclass(frozen=True)
class ProbeModel:
    """Mean [probes] and covariance [probes, probes] of the influence over samples."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fit(cls, complete: np.ndarray, random: np.ndarray) -> "ProbeModel":
        """Fit to rows of influences, each over all probes.

        Because there are few rows and many probes, correlations are shrunk (OAS; Chen et al. 2010). Standard deviations
        are kept.

        Args:
            complete: [samples, probes]; may be a biased choice of samples.
            random: [samples, probes] of randomly drawn samples, for the mean.
        """
        from sklearn.covariance import oas

        deviation = np.maximum(complete.std(axis=0, ddof=1), 1e-9)
        correlation, _ = oas((complete - complete.mean(axis=0)) / deviation)
        return cls(random.mean(axis=0), correlation * np.outer(deviation, deviation))

    def order(self, costs: np.ndarray) -> list[int]:
        """Probes in the order of their reduction of the variance of the total, given those before, per unit of cost."""
        n = len(costs)
        # pivoted Cholesky: what the probes so far explain of each
        factor = np.zeros((n, n))
        order = list[int]()
        left = np.ones(n, bool)
        variance = self.covariance.diagonal().copy()
        with_total = self.covariance.sum(axis=1)
        for step in range(n):
            gain = with_total**2 / np.maximum(variance, 1e-18) / costs
            best = int(np.argmax(np.where(left, gain, -1.0)))
            column = self.covariance[:, best] - factor[:, :step] @ factor[best, :step]
            column /= sqrt(max(column[best], 1e-18))
            with_total -= column * column[left].sum()
            variance -= column**2
            factor[:, step] = column
            order.append(best)
            left[best] = False
        return order

    def estimate(self, seen: np.ndarray, influences: np.ndarray) -> tuple[np.ndarray, float]:
        """Contribution over all probes of samples that were scored on some.

        Args:
            seen: [probes], true where scored.
            influences: [samples, probes seen].

        Returns:
            [samples], and their standard error: 0 when every probe was seen.
        """
        total = influences.sum(axis=1)
        hidden = ~seen
        if not hidden.any():
            return total / len(seen), 0.0
        known = self.covariance[np.ix_(seen, seen)]
        across = self.covariance[np.ix_(seen, hidden)]
        weights = np.linalg.solve(known, across)
        expected = self.mean[hidden].sum() + (influences - self.mean[seen]) @ weights.sum(axis=1)
        remaining = self.covariance[np.ix_(hidden, hidden)] - across.T @ weights
        return (total + expected) / len(seen), float(np.sqrt(max(remaining.sum(), 0.0))) / len(seen)

    def weights(self, seen: np.ndarray) -> tuple[np.ndarray, float]:
        """The map of `estimate`, as a weight for the influence on each probe seen, and a constant to add."""
        hidden = ~seen
        known = self.covariance[np.ix_(seen, seen)]
        across = self.covariance[np.ix_(seen, hidden)]
        told = np.linalg.solve(known, across).sum(axis=1)
        constant = self.mean[hidden].sum() - self.mean[seen] @ told
        return (1 + told) / len(seen), float(constant) / len(seen)


class Calibration:
    """The factor by which errors of estimates exceed a model's standard errors.

    The normal model is too optimistic. It is learned from a few dozen samples, some of which vary far more than others,
    and the order of the probes was learned from the same samples. So both are learned again without a part of the
    samples, and that part is estimated from as many probes."""

    def __init__(self, pilot: np.ndarray, costs: np.ndarray) -> None:
        """`pilot`: [samples, probes], influences of the randomly drawn samples; `costs`: [probes]."""
        self._folds = list[tuple[ProbeModel, list[int], np.ndarray]]()
        self._known = dict[int, float]()
        for fold in range(min(_FOLDS, len(pilot))):
            out = np.arange(len(pilot)) % _FOLDS == fold
            if (~out).sum() > 1:
                model = ProbeModel.fit(pilot[~out], pilot[~out])
                self._folds.append((model, model.order(costs), pilot[out]))

    def inflation(self, n_seen: int) -> float:
        """Root mean square of the errors, in standard errors, with so many probes seen, but at least 1."""
        if n_seen not in self._known:
            squares = list[float]()
            for model, order, left_out in self._folds:
                seen = np.zeros(left_out.shape[1], bool)
                seen[order[:n_seen]] = True
                value, error = model.estimate(seen, left_out[:, seen])
                squares += (((value - left_out.mean(axis=1)) / error) ** 2).tolist() if error else []
            self._known[n_seen] = max(1.0, sqrt(sum(squares) / len(squares))) if squares else 1.0
        return self._known[n_seen]
