"""The shipped descriptions of data sets for temporal detection say what the command line understands."""

from dataclasses import fields
from pathlib import Path

import jsonargparse
import pytest
import yaml

from datamodules.annotations.activitynet import ActivityNet
from datamodules.annotations.features import FeatureFolder
from datamodules.annotations.segment_source import SegmentSource
from datamodules.annotations.thumos14 import Thumos14
from datamodules.flow.methods import DisFlow
from datamodules.flow.store import FlowSettings
from datamodules.segments import SegmentDataModule

DATA = Path(__file__).parents[2] / "configs" / "data"


def built(source: dict, **data) -> SegmentDataModule:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentDataModule, "data")
    settings = {"class_path": "datamodules.segments.SegmentDataModule", "init_args": {"source": source, **data}}
    return parser.instantiate_classes(parser.parse_object({"data": settings})).data


@pytest.mark.parametrize(("name", "kind"), [("thumos14", Thumos14), ("activitynet", ActivityNet)])
def test_a_config_builds_its_source(name, kind):
    source = built(yaml.safe_load((DATA / f"{name}.yaml").read_text())).source
    assert isinstance(source, kind) and isinstance(source, SegmentSource)
    assert isinstance(source.features, FeatureFolder) and Path(source.features.folder).parts[0] == "data"


def test_features_give_way_to_videos_and_the_test_list_is_an_argument():
    settings = yaml.safe_load((DATA / "thumos14.yaml").read_text())
    settings["init_args"] |= {"features": None, "videos": "data/thumos14/videos", "test_list": 210}
    data = built(settings, windows={"eval_steps": 0, "train": "sliding"})
    assert data.source.features is None and data.source.test_list == 210 and data.windows.in_evaluation == 0
    settings["init_args"]["test_list"] = 200
    with pytest.raises(jsonargparse.ArgumentError, match="test_list"):
        built(settings)


def test_flow_is_a_name_or_a_method_with_its_settings():
    puppets = {"class_path": "datamodules.puppets.segments.PuppetSegments"}
    assert built(puppets).flow is None
    named = built(puppets, flow={"method": "dis", "cache": "data/cache/flow"}).flow
    assert named.method.identity() == DisFlow().identity() and named.folder == Path("data/cache/flow")
    assert built(puppets, flow={}).flow.method.identity() == named.method.identity()
    method = {"class_path": "datamodules.flow.methods.RaftFlow", "init_args": {"variant": "large", "batch_size": 4}}
    raft = built(puppets, flow={"method": method, "bound": 30}).flow
    assert (raft.method.name, raft.method.variant, raft.grid.levels) == ("raft", "large", 480)
    for wrong in ({"method": "farneback"}, {"bouund": 3}):
        with pytest.raises(jsonargparse.ArgumentError, match=r"farneback|bouund"):
            built(puppets, flow=wrong)


def test_a_saved_config_says_which_flow():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--flow", type=FlowSettings | None)
    for given in ({}, {"method": {"class_path": "datamodules.flow.methods.DisFlow", "init_args": {"preset": "fast"}}}):
        text = parser.dump(parser.parse_object({"flow": given}))
        assert "Unable to serialize" not in text and yaml.safe_load(text)["flow"].items() >= given.items()
        assert yaml.safe_load(text)["flow"].keys() == {field.name for field in fields(FlowSettings)}
