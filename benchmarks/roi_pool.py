"""Box pooling as a sparse product compared with torchvision's kernel on a CPU: seconds, forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/roi_pool.py

512 boxes of four images, three levels of 96 channels, as in a training step of the preset ``laptop``; rounds alternate.
"""

import json
import time

import torch
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from rarebox.detectors.roi_pool import RoIPool

STRIDES, HEIGHT, WIDTH, ROUNDS = (8, 16, 32), 320, 448, 9


def main() -> None:
    dice = torch.Generator().manual_seed(0)
    maps = {
        str(i): torch.randn(4, 96, HEIGHT // s, WIDTH // s, generator=dice).requires_grad_()
        for i, s in enumerate(STRIDES)
    }
    corner = torch.rand(512, 2, generator=dice) * torch.tensor([WIDTH - 90.0, HEIGHT - 90.0])
    boxes = list(torch.cat([corner, corner + 8 + 80 * torch.rand(512, 2, generator=dice)], dim=1).split(128))
    pools = []
    for kind in (RoIPool, MultiScaleRoIAlign):
        pool = kind(["0", "1", "2"], 7, 2, canonical_scale=119)
        pool.scales, pool.map_levels = [1 / s for s in STRIDES], LevelMapper(3, 5, 119, 4)
        pools.append(pool)
    seconds: dict[str, list[tuple[float, float]]] = {"RoIPool": [], "MultiScaleRoIAlign": []}
    for turn in range(ROUNDS + 1):
        for pool in pools if turn % 2 else reversed(pools):
            start = time.perf_counter()
            pooled = pool(maps, boxes, [(HEIGHT, WIDTH)] * 4)
            middle = time.perf_counter()
            torch.autograd.grad(pooled.sum(), list(maps.values()))
            if turn:  # the first warms up
                seconds[type(pool).__name__].append((middle - start, time.perf_counter() - middle))
    ours, theirs = (torch.tensor(taken).median(dim=0).values.tolist() for taken in seconds.values())
    names = ("forwards", "backwards")
    told = {f"{n}_times_as_fast": round(b / a, 2) for n, a, b in zip(names, ours, theirs, strict=True)}
    print(json.dumps({**told, "ours": [round(s, 4) for s in ours], "torchvision": [round(s, 4) for s in theirs]}))


if __name__ == "__main__":
    main()
