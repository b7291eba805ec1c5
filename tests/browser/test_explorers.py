"""Explorers alone, in a scratch notebook that trains nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .explorer import Explorer, explorers
from .lab import LabServer, NotebookPage

# Class in coursekit.explore -> how a scratch notebook makes one.
CONSTRUCTORS = {
    "PatchExplorer": "PatchExplorer()",
    "ScheduleExplorer": "ScheduleExplorer()",
    "TrajectoryExplorer": "TrajectoryExplorer()",
    "ReverseKernelExplorer": "ReverseKernelExplorer()",
    "LatentExplorer": "LatentExplorer(VAE(8, 2, 4), *digits())",
    "SamplingExplorer": "SamplingExplorer(torch.randn(11, 3, 1, 8, 8), torch.rand(10, 3, 1, 8, 8), NoiseSchedule.cosine(10))",
    "ThresholdExplorer": "ThresholdExplorer(photos := torch.rand(4, 3, 64, 64), photos[:, :1], (photos[:, 1:2] > 0.5).float())",
}


@pytest.mark.browser
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_explorer_answers_every_control(
    name: str,
    lab_server: LabServer,
    open_notebook: Callable[..., NotebookPage],
    report_latency: Callable[[str, Explorer], None],
) -> None:
    packages = {"data": "digits", "diffusion": "NoiseSchedule", "vae": "VAE"}
    imports = "\n".join(["import torch", *(f"from coursekit.{package} import {thing}" for package, thing in packages.items())])
    source = f"{imports}\nfrom coursekit.explore import {name}\nexplorer = {CONSTRUCTORS[name]}\nexplorer"
    page = open_notebook(lab_server.write_notebook(f"{name}.ipynb", source))
    page.run_all()
    assert page.errors() == []
    found = list(explorers(page))
    assert len(found) == 1, f"{name} gives {len(found)} elements of class coursekit-explorer, expected one"
    found[0].drive()
    report_latency(name, found[0])
    assert page.errors() == []
