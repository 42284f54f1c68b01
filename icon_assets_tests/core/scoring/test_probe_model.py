"""How probes move together: the order in which they are met, and how far estimates can be trusted."""

import numpy as np

from icon_assets.core.scoring.probe_model import Calibration, ProbeModel


def many_tempers(n: int, probes: int, seed: int) -> np.ndarray:
    """Influences [n, probes] with many common causes, of samples of which some vary several times as much as others."""
    draw = np.random.default_rng(seed)
    causes = np.random.default_rng(0).normal(0, 0.1, (60, probes))
    return np.exp(draw.normal(0, 0.8, (n, 1))) * (draw.normal(size=(n, 60)) @ causes)


def test_intervals_hold_for_samples_that_nothing_was_learned_from() -> None:
    inside = []
    promised = []
    costs = np.ones(96)
    for seed in range(12):
        pilot = many_tempers(24, 96, seed)
        others = many_tempers(400, 96, 100 + seed)
        model = ProbeModel.fit(pilot, pilot)
        calibration = Calibration(pilot, costs)
        seen = np.zeros(96, bool)
        seen[model.order(costs)[:48]] = True
        value, error = model.estimate(seen, others[:, seen])
        z = np.abs(value - others.mean(axis=1)) / error
        promised.append((z < 1.645).mean())
        inside.append((z < 1.645 * calibration.inflation(48)).mean())
        assert calibration.inflation(96) == 1, "nothing is estimated"
    assert np.mean(promised) < 0.82, "the normal model alone promises too much here"
    assert 0.87 < np.mean(inside) < 0.95


def test_probes_come_in_the_order_of_what_they_tell_for_their_price() -> None:
    x = many_tempers(60, 12, 1)
    costs = np.random.default_rng(4).uniform(1, 5, 12)
    model = ProbeModel.fit(x, x)
    rest = model.covariance.copy()
    left = list(range(12))
    order = []
    for _ in range(12):  # the same, with the whole of what is left of the covariance
        best = max(left, key=lambda i: rest[i, left].sum() ** 2 / rest[i, i] / costs[i])
        order.append(best)
        left.remove(best)
        rest -= np.outer(rest[:, best], rest[:, best]) / rest[best, best]
    assert model.order(costs) == order
