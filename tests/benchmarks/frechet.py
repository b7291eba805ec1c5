"""The Fréchet distance of coursekit.fid beside the usual way through scipy's sqrtm, at 2048 features. By hand; not a part of CI.

    python tests/benchmarks/frechet.py --threads 1
    python tests/benchmarks/frechet.py --threads 2

Once for samples that give regular covariances, once where one is of 512 samples only, and so singular. The two ways take turns: compare
by ratio. Prints, and writes one entry a case into data/results/frechet_speed.json. Fails where the two differ by more than
1e-6 in the regular case; a singular product has no root that sqrtm could find to more than half of the digits.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")   # as in ddpm.py

import scipy.linalg
import torch
from measuring import keep, paired, processor
from threadpoolctl import threadpool_limits
from torch import Tensor

from coursekit.fid import feature_statistics, frechet_distance

D, CASES = 2048, {"regular": (5000, 5000), "one of 512 samples": (5000, 512)}
Statistics = tuple[Tensor, Tensor]


def features(count: int, seed: int) -> Tensor:
    """(count, D), mixed, not negative, and of falling variances, as Inception's are."""
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(count, D, dtype=torch.float64, generator=generator) * torch.arange(1, D + 1) ** -0.5
    mix = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / D**0.5
    return (plain @ mix + 0.02).relu()


def by_sqrtm(one: Statistics, other: Statistics) -> float:
    """As in the first programs for the FID."""
    (m_1, s_1), (m_2, s_2) = one, other
    root = scipy.linalg.sqrtm((s_1 @ s_2).numpy())
    return float((m_1 - m_2).square().sum() + s_1.trace() + s_2.trace() - 2 * root.trace().real)


def compared(sizes: tuple[int, int], threads: int, repeats: int) -> dict[str, Any]:
    """Times of both ways in turns, and how far apart what they find is."""
    one, other = (feature_statistics(features(n, seed)) for seed, n in enumerate(sizes, 1))
    values: dict[str, float] = {}
    ways = {"ours": lambda: values.update(ours=frechet_distance(*one, *other)), "sqrtm": lambda: values.update(sqrtm=by_sqrtm(one, other))}
    torch.set_num_threads(threads)
    with threadpool_limits(threads):   # scipy has threads of its own
        times = paired(ways, repeats)
    return {
        "command": f"python tests/benchmarks/frechet.py --threads {threads}", "device": processor(), "threads": threads,
        "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"], "features": D, "samples": list(sizes), "seeds": [1, 2],
        "distance": values["ours"], "relative_difference": f"{abs(values['ours'] / values['sqrtm'] - 1):.1e}", **times,
    }   # fmt: skip


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for case, sizes in CASES.items():
        entry = compared(sizes, options.threads, options.repeats)
        keep("frechet_speed", f"{case}, {options.threads} thread{'s' * (options.threads > 1)}", entry)
        ours, sqrtm, apart = entry["ours"], entry["sqrtm"], entry["relative_difference"]
        print(f"{case}: ours {ours['seconds']:.2f} s, sqrtm {sqrtm['seconds']:.1f} s, ratio {sqrtm['ratio']:.3f}, "
              f"by CPU time {sqrtm['cpu_ratio']:.3f}, n = {options.repeats}; apart by {apart}", flush=True)   # fmt: skip
        if case == "regular" and float(apart) > 1e-6:
            raise SystemExit(f"{case}: coursekit.fid and sqrtm should agree to 1e-6, and are apart by {apart}")


if __name__ == "__main__":
    main()
