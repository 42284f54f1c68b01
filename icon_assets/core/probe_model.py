"""How the probes of a set move together: a normal model of the influences of a sample on all probes.

Learned from samples that were scored on every probe; it then says which probes tell most about the mean over all of them
for their price, and what a sample's contribution is when only some of its probes were scored.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ProbeModel:
    """Mean [probes] and covariance [probes, probes] of the influence over samples."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fit(cls, complete: np.ndarray, random: np.ndarray) -> "ProbeModel":
        """Fit to rows of influences, each over all probes.

        Few rows and many probes: correlations are shrunk (OAS; Chen et al. 2010), standard deviations are kept.

        Args:
            complete: [samples, probes]; may be a biased choice of samples.
            random: [samples, probes] of randomly drawn samples, for the mean.
        """
        from sklearn.covariance import oas

        deviation = np.maximum(complete.std(axis=0, ddof=1), 1e-9)
        correlation, _ = oas((complete - complete.mean(axis=0)) / deviation)
        return cls(random.mean(axis=0), correlation * np.outer(deviation, deviation))

    def order(self, costs: np.ndarray) -> list[int]:
        """Probes by what each one takes from the variance of the total, given those before it, per unit of cost."""
        rest, order = self.covariance.copy(), list[int]()
        left = np.ones(len(costs), bool)
        while left.any():
            gain = rest[:, left].sum(axis=1) ** 2 / np.maximum(rest.diagonal(), 1e-18) / costs
            best = int(np.argmax(np.where(left, gain, -1.0)))
            order.append(best)
            left[best] = False
            column = rest[:, best].copy()
            rest -= np.outer(column, column) / max(column[best], 1e-18)
        return order

    def estimate(self, seen: np.ndarray, influences: np.ndarray) -> tuple[np.ndarray, float]:
        """Contribution over all probes of samples that were scored on some.

        Args:
            seen: [probes], true where scored.
            influences: [samples, probes seen].

        Returns:
            [samples], and their standard error: 0 when every probe was seen.
        """
        total, hidden = influences.sum(axis=1), ~seen
        if not hidden.any():
            return total / len(seen), 0.0
        known, across = self.covariance[np.ix_(seen, seen)], self.covariance[np.ix_(seen, hidden)]
        weights = np.linalg.solve(known, across)
        expected = self.mean[hidden].sum() + (influences - self.mean[seen]) @ weights.sum(axis=1)
        remaining = self.covariance[np.ix_(hidden, hidden)] - across.T @ weights
        return (total + expected) / len(seen), float(np.sqrt(max(remaining.sum(), 0.0))) / len(seen)

    def weights(self, seen: np.ndarray) -> tuple[np.ndarray, float]:
        """What `estimate` does, as a weight for the influence on each probe seen, and a constant to add."""
        hidden = ~seen
        known, across = self.covariance[np.ix_(seen, seen)], self.covariance[np.ix_(seen, hidden)]
        told = np.linalg.solve(known, across).sum(axis=1)
        constant = self.mean[hidden].sum() - self.mean[seen] @ told
        return (1 + told) / len(seen), float(constant) / len(seen)
