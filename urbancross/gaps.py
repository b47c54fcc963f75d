"""How far two domains lie apart: by a probe that tells them apart, and by the distance of their distributions."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from urbancross.errors import ConfigError


def proxy_a_distance(
    source: np.ndarray,
    target: np.ndarray,
    groups_source: np.ndarray | None = None,
    groups_target: np.ndarray | None = None,
    seed: int = 0,
) -> float:
    """How well a linear probe tells two domains apart: 2 (1 - 2 error), 0 for not at all, 2 for always.

    The error is class-balanced and measured on the half of the groups that the probe has not seen: neighbouring tiles
    look alike, so a probe tested beside its training tiles knows places rather than domains.

    Args:
        source: [n, D].
        target: [m, D].
        groups_source: [n], equal for tiles of one place; left out, every row is a place of its own.
        groups_target: [m], likewise. Labels are per domain: 3 here and 3 there are two places.
        seed: of the split.

    Returns:
        A number in [0, 2].
    """
    _check_domains(source, target)
    rng = np.random.default_rng(seed)
    held_out = np.concatenate([_half(len(source), groups_source, rng), _half(len(target), groups_target, rng)])
    rows = np.concatenate([source, target]).astype(np.float64)
    domain = np.repeat([0, 1], [len(source), len(target)])
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    probe.fit(rows[~held_out], domain[~held_out])
    wrong = probe.predict(rows[held_out]) != domain[held_out]
    error = np.mean([wrong[domain[held_out] == d].mean() for d in (0, 1)])
    return float(np.clip(2 * (1 - 2 * error), 0, 2))


def _half(n: int, groups: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Mark the rows of a random half of the groups; [n] bool."""
    names, group = np.unique(np.arange(n) if groups is None else np.asarray(groups), return_inverse=True)
    if len(group) != n or len(names) < 2:
        raise ConfigError(f"{n} rows in {len(names)} groups; a probe needs two groups a domain, one to be tested on")
    chosen = np.zeros(len(names), dtype=bool)
    chosen[rng.permutation(len(names))[: len(names) // 2]] = True
    return chosen[group]


def mmd2(
    source: np.ndarray, target: np.ndarray, permutations: int = 200, seed: int = 0, most: int = 1000
) -> tuple[float, float]:
    """Squared maximum mean discrepancy of two domains, unbiased, and its permutation p-value.

    Gretton et al., JMLR 2012, eq. 3, with the kernel exp(-|x - y|^2 / (2 s^2)), s the median distance. Unbiased means
    that it is about 0, and often just below, for two samples of one distribution.

    Args:
        source: [n, D].
        target: [m, D].
        permutations: how often the rows are dealt out to two domains anew.
        seed: of the permutations and of the choice of rows.
        most: rows used of each domain, chosen at random where there are more.

    Returns:
        The statistic, and (1 + permutations at least as large) / (1 + permutations).
    """
    _check_domains(source, target)
    rng = np.random.default_rng(seed)
    x, y = (rows[rng.choice(len(rows), most, replace=False)] if len(rows) > most else rows for rows in (source, target))
    n = len(x)
    kernel = _kernel(np.concatenate([x, y]).astype(np.float64))
    in_source = np.zeros((1 + permutations, len(kernel)))
    in_source[:, :n] = 1
    in_source[1:] = rng.permuted(in_source[1:], axis=1)
    values = _mmd2_of(kernel, in_source)  # the first is the real one
    as_large = np.count_nonzero(values[1:] >= values[0] - 1e-12)
    return float(values[0]), float((1 + as_large) / (1 + permutations))


def _kernel(rows: np.ndarray) -> np.ndarray:
    """Gaussian kernel of all rows, [P, P], its diagonal zero: the unbiased statistic never pairs a row with itself."""
    squares = (rows**2).sum(axis=1)
    distance2 = squares[:, None] + squares - 2 * rows @ rows.T
    distance2[distance2 < 1e-12 * squares.max()] = 0  # equal rows, up to rounding
    off_diagonal = np.sqrt(distance2[np.triu_indices(len(rows), k=1)])
    width = np.median(off_diagonal) or off_diagonal.mean() or 1.0  # half the rows or more may be one point
    kernel = np.exp(-distance2 / (2 * width**2))
    np.fill_diagonal(kernel, 0)
    return kernel


def _mmd2_of(kernel: np.ndarray, in_source: np.ndarray) -> np.ndarray:
    """The statistic for each way [W, P] of dealing the rows out, 1 for source; [W]."""
    in_target = 1 - in_source
    n, m = in_source[0].sum(), in_target[0].sum()
    to_source = in_source @ kernel  # [W, P], similarity of each row to all of the source
    within_source = (to_source * in_source).sum(axis=1) / (n * (n - 1))
    between = (to_source * in_target).sum(axis=1) / (n * m)
    within_target = ((in_target @ kernel) * in_target).sum(axis=1) / (m * (m - 1))
    return within_source + within_target - 2 * between


def _check_domains(source: np.ndarray, target: np.ndarray) -> None:
    for name, rows in (("source", source), ("target", target)):
        if rows.ndim != 2 or len(rows) < 2:
            raise ConfigError(f"{name} is {[*rows.shape]}; a domain gap needs [rows, width] with at least two rows")
        if not np.isfinite(rows).all():
            raise ConfigError(f"{name} holds embeddings that are not finite")
    if source.shape[1] != target.shape[1]:
        raise ConfigError(f"source is {source.shape[1]} wide and target {target.shape[1]}; wanted one encoder for both")
