"""Networks that benchmarks make of the files in ``configs/networks``."""

from __future__ import annotations

import pytest
import torch

from results.benchmarks import student_speed
from results.benchmarks.student_networks import configured


@pytest.mark.parametrize(("name", "classes"), [("evad_16f_tiny", 10), ("dsta_tiny", 10), ("evad_vit_b", 80)])
def test_a_network_has_the_classes_of_the_data_of_its_size(name, classes):
    with torch.device("meta"):
        assert configured(name, {}).num_classes == classes


@pytest.mark.parametrize("saving", student_speed.SAVINGS)
@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
def test_a_saving_changes_what_it_says(temporal, saving):
    """``make bench`` once gave words with their quotation marks, which no setting takes."""
    changes = student_speed.EVADS_HEAD | student_speed.SAVINGS[saving]
    with torch.device("meta"):
        network = configured(f"{temporal}_vit_b", changes)
    localizer, decoder = network.head.localizer, network.head.decoder
    assert localizer.num_proposals == changes["head.localizer.num_proposals"]
    assert len(localizer.stages) == changes["head.localizer.num_stages"]
    assert len(decoder.blocks) == changes["head.decoder.depth"]
    assert decoder.context == changes["head.decoder.context"]
    assert network.num_actors == changes["num_actors"]
