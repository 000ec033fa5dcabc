"""Networks that benchmarks make of the files in ``configs/networks``."""

from __future__ import annotations

import pytest
import torch

from results.benchmarks.student_networks import configured


@pytest.mark.parametrize(("name", "classes"), [("evad_16f_tiny", 10), ("dsta_tiny", 10), ("evad_vit_b", 80)])
def test_a_network_has_the_classes_of_the_data_of_its_size(name, classes):
    with torch.device("meta"):
        assert configured(name, {}).num_classes == classes
