"""Onlooker's command line: ``python main.py COMMAND --config configs/<experiment>.yaml``.

``fit``, ``validate``, ``test`` and ``predict`` are Lightning's; ``check`` looks through data, ``score`` scores saved
detections without a model, ``export`` writes a network for other runtimes.
"""

# ruff: noqa: E402  (settings come before imports)

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Literal

# Before anything imports them: the first looks up its newest version on the network, the second warns about Lightning.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")

import numpy as np
import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

import callbacks
import datamodules
import lightning_modules
from callbacks.benchmark.provenance import commit
from callbacks.benchmark.rows import enter
from callbacks.measures.exported_latency import runtime_rows
from datamodules.check import check_data
from datamodules.frames.store import DecodedFrames
from lightning_modules.command_line.config_files import with_whole_files
from lightning_modules.command_line.precision import useful_precision
from lightning_modules.commands.export_graph import export_graph, graph_of
from lightning_modules.commands.export_parity import first_inputs, load, moving_blobs, run_torch
from lightning_modules.commands.score_boxes import score_file, score_since_start, segment_score_text, tube_score_text
from lightning_modules.metrics.frame_ap import FrameMapSettings
from lightning_modules.metrics.video_ap import VideoProtocol
from lightning_modules.networks.detection.export_graphs import ExportGraph
from lightning_modules.networks.layers.prepared import prepare_for_inference
from lightning_modules.networks.streaming import state_bytes
from lightning_modules.networks.weights.loading import load_exactly, read_state_dict

for room in (callbacks, datamodules, lightning_modules):
    for name in room.__all__:
        getattr(room, name)  # loads what a config may name: class names are looked up among what is imported

DEFAULTS = Path(__file__).parent / "configs" / "trainer" / "defaults.yaml"
"""Read before any ``--config``."""
WITHOUT_MODEL = frozenset({"check", "score"})
"""Commands that build no model, although the config they read names one."""
EXPECTED_ERRORS = (ValueError, FileNotFoundError)
"""What a user can cause: shown in one line. ONLOOKER_DEBUG=1 shows where it was raised."""


class OnlookerTrainer(Trainer):
    """Lightning's Trainer with the commands that run no loop. Their arguments are the command line's."""

    def check(
        self,
        model: None,
        datamodule: LightningDataModule,
        page: Path = Path("runs/check.png"),
        page_clips: int = 12,
        every_frame: bool = False,
        names_shown: int = 10,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Look through the data that a config names, draw some of it, and say what is wrong.

        The exit status is 1 where something is.

        Args:
            page: where the picture of clips with their boxes goes.
            page_clips: how many clips it shows at most.
            every_frame: decode every frame, not only the first and the last of each video.
            names_shown: how many lines or videos are named for each kind of mistake.
            ckpt_path, weights_only: not used; a run's ``config.yaml``, which has them, can be given as it is.
        """
        report = check_data(datamodule, page, page_clips, every_frame)
        print(report.text(names_shown))
        if report.mistakes:
            sys.exit(1)

    def score(
        self,
        model: None,
        datamodule: LightningDataModule,
        predictions: Path,
        split: Literal["val", "test"] = "test",
        metric: FrameMapSettings | None = None,
        video_protocol: VideoProtocol | None = None,
        tolerance_seconds: float = 0.01,
        tiou_thresholds: list[float] | None = None,
        verbose: bool = True,
        since_start: bool = False,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Score detections that were saved earlier, without a model.

        Args:
            predictions: what ``test`` saved with ``DetectionFile``, or another program in the
                same form: a csv of ``video,seconds,x1,y1,x2,y2,action_id,score``; of tubes a json as
                ``TubeFile`` saves it, of segments one in the form of the ActivityNet challenge.
            split: whose ground truth; ``val`` for what ``validate`` saved.
            metric: the protocol for boxes; that of the config's model by default.
            video_protocol: the protocol for tubes; that of the config's model by default, otherwise ``act``.
            tolerance_seconds: how far a time stamp of a box may be from that of its keyframe.
            tiou_thresholds: overlaps of segments to average over; 0.3 to 0.7 by default.
            verbose: also print the AP of every class.
            since_start: also print the frame mAP of boxes by the time since their action's start.
            ckpt_path, weights_only: not used; a run's ``config.yaml``, which has them, can be given as it is.
        """
        names = datamodule.class_names
        if isinstance(datamodule, datamodules.SegmentDataModule):
            truth = datamodule.true_segments(split)
            on = datamodule.evaluated_on
            print(segment_score_text(predictions, truth, names, on, tiou_thresholds, every_class=verbose))
            return
        if predictions.suffix == ".json":
            truth, stride = datamodule.true_tubes(split), datamodule.evaluation_grid
            print(tube_score_text(predictions, truth, names, stride, video_protocol or "act", every_class=verbose))
            return
        keyframes = datamodule.true_keyframes(split)
        score = score_file(predictions, keyframes, len(names), datamodule.evaluated_classes, metric, tolerance_seconds)
        print(score.text(names, every_class=verbose))
        if since_start:
            seconds, scored = datamodule.seconds_since_start(split), datamodule.evaluated_classes
            by_time = score_since_start(predictions, keyframes, seconds, len(names), scored, metric, tolerance_seconds)
            print(f"\n{by_time.text()}")

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        format: Literal["onnx", "torch_export"] = "onnx",
        output: Path | None = None,
        image_size: tuple[int, int] | None = None,
        batch_size: int = 1,
        dynamic_batch: bool = False,
        video: Path | None = None,
        parity_frames: int = 200,
        box_tolerance: float = 1e-4,
        score_tolerance: float = 1e-3,
        opset: int = 18,
        benchmark: bool = False,
        ckpt_path: str | None = None,
        weights_only: bool | None = True,
    ) -> None:
        """Write a network for other runtimes: a student's step with its state as inputs and outputs, a teacher's clip.

        Args:
            format: ``onnx`` for onnxruntime and others, ``torch_export`` for PyTorch alone.
            output: the file, ``runs/export/<name>`` by default; its ending says the format whatever is given here.
            image_size: height and width of the frames in pixels, padded inside; the size of the video's frames as the
                data reads them, or without a video the square that the network was made for.
            batch_size: streams (clips) a call. dynamic_batch: any number of them instead.
            video: a film like those to come; what was exported is compared with PyTorch on its frames, or on moving
                blobs where there is none.
            parity_frames: over how many frames.
            box_tolerance: largest difference of a box's corner, as a fraction of the frame's width or height.
            score_tolerance: largest difference of a score.
            opset: version of the ONNX operators, 18 to 25.
            benchmark: time what was exported and PyTorch in turn, a row each in ``results/benchmark.md``.
            ckpt_path: checkpoint of a run; without it the weights that the config names.
            weights_only: checkpoints are never read otherwise here.
        """
        if benchmark and batch_size != 1:
            raise ValueError(f"the benchmark's latency is that of one stream, but batch_size={batch_size}")
        frames = None if video is None else video_frames(video, datamodule, parity_frames, image_size)
        size = image_size if frames is None else frames.shape[1:3]
        graph = graph_of(model, size, getattr(datamodule, "num_frames", None))
        if ckpt_path is not None:
            load_exactly(model.network, read_state_dict(ckpt_path))
        weights = str(ckpt_path or model.weights or "as configured")
        name = self.logger.name if self.logger else type(model).__name__
        exported = export_graph(
            graph,
            output or Path("runs/export") / name,
            moving_blobs(parity_frames, graph.image_size) if frames is None else frames,
            datamodule.class_names,
            format,
            None if dynamic_batch else batch_size,
            parity_frames,
            box_tolerance,
            score_tolerance,
            opset,
            {
                "frame_stride": datamodule.frame_stride,
                "person_threshold": model.person_threshold,
                "weights": weights,
                "commit": commit(Path(__file__).parent),
                "compared_on": "moving blobs" if video is None else video.name,
            },
        )
        print(exported.summary())
        if benchmark:
            print(benchmark_exported(exported.path, graph, model, name, weights))


def video_frames(
    video: Path, datamodule: LightningDataModule, count: int, image_size: tuple[int, int] | None
) -> np.ndarray:
    """The first frames of a file at the stride and scale of the data, uint8 (N, H, W, 3)."""
    store = DecodedFrames(datamodule.store.scale)
    facts = store.facts(video)
    if image_size not in (None, facts.size):
        raise ValueError(
            f"{video} is read in {facts.size[0]}x{facts.size[1]} pixels, but image_size={list(image_size)}; leave "
            "image_size out, or set the scale of the data (data.init_args.short_side)"
        )
    return store.get(video, range(0, len(facts.times), datamodule.frame_stride)[:count])


def benchmark_exported(path: Path, graph: ExportGraph, model: LightningModule, name: str, weights: str) -> str:
    """Time an exported file, PyTorch on the same graph and the teacher in turn; the table with a row for the first two.

    The teacher's clip is timed at the size it was made for, so frames of another size have no speed-up.
    """
    prepare_for_inference(model.network)
    inputs, own, exported = first_inputs(graph), run_torch(graph), load(path, graph)
    runtime = "onnxruntime" if path.suffix == ".onnx" else "torch.export"
    is_teachers_size = graph.image_size == (model.network.frame_size,) * 2
    rows = runtime_rows(
        name,
        weights,
        {runtime: lambda: exported(inputs), "PyTorch, same inputs": lambda: own(inputs)},
        getattr(model, "reference_step", lambda: None)() if is_teachers_size else None,
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        state_mib=state_bytes(graph.initial_state(1)) / 2**20,
    )
    return [enter(Path("results"), row) for row in rows][-1]


class OnlookerCLI(LightningCLI):
    """LightningCLI whose runs are named after their config and kept together in ``runs/<name>``."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        ours = {command: {"model", "datamodule"} for command in ("check", "score", "export")}
        return LightningCLI.subcommands() | ours

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:
        self.config = parser.parse_args(with_whole_files(sys.argv[1:] if args is None else args))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name",
            type=str,
            default=None,
            help="name of the run and of its row in the table; the config's by default",
        )
        parser.add_argument(
            "--table_folder",
            type=Path,
            default=None,
            help="where `test` keeps its table, benchmark.md and benchmark.jsonl; results by default",
        )
        parser.link_arguments(
            "data.num_classes", "model.init_args.network.init_args.num_classes", apply_on="instantiate"
        )

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        config.trainer.precision = useful_precision(config.trainer.precision, config.trainer.accelerator)
        if config.name is None:
            files = config.get("config") or []
            config.name = Path(str(files[0])).stem if files else "unnamed"

    def instantiate_classes(self) -> None:
        try:
            if self.subcommand in WITHOUT_MODEL:
                self._instantiate_data_and_trainer()
            else:
                super().instantiate_classes()
        except ValueError as error:
            raise unwrapped(error) from None

    def _instantiate_data_and_trainer(self) -> None:
        config = self.config[self.subcommand].clone()
        if self.subcommand == "score":
            of_model = config.model.get("init_args") or Namespace()
            detection = of_model.get("detection") or Namespace()
            config.metric = config.metric or detection.get("metric")
            config.video_protocol = config.video_protocol or (detection.get("video_map") or Namespace()).get("protocol")
        del config["model"]
        self.config_init = Namespace({self.subcommand: self._parser(self.subcommand).instantiate_classes(config)})
        self.datamodule, self.model = self.config_init[self.subcommand].get("data"), None
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs) -> Trainer:
        config = self.config_init[self.subcommand]
        if config.trainer.logger is None:
            # `version` is left to Lightning: a new folder a run, nothing is ever overwritten.
            board = TensorBoardLogger("runs", name=config.name, default_hp_metric=False)
            kwargs["logger"] = [board, CSVLogger("runs", name=config.name, version=board.version)]
            if self.subcommand == "fit":
                point_latest_at(Path(board.log_dir))
        trainer = super().instantiate_trainer(**kwargs)
        for callback in trainer.callbacks:
            if isinstance(callback, callbacks.BenchmarkTable):
                callback.experiment = callback.experiment or config.name
                callback.folder = config.table_folder or callback.folder
        return trainer


def unwrapped(error: Exception) -> Exception:
    """What a constructor raised, without the errors that the parser wraps around it: they list every argument."""
    while error.__cause__ is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith("jsonargparse"):
            break
        error = error.__cause__
    return error


@rank_zero_only
def point_latest_at(folder: Path) -> None:
    """Make ``runs/<name>/latest`` lead to the newest run, so that commands can name its checkpoints."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    latest = folder.parent / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name, target_is_directory=True)


def main(args: list[str] | None = None) -> OnlookerCLI:
    """Run the command line with ``args`` (``sys.argv`` by default); what it ran is in the result."""
    torch.set_float32_matmul_precision("high")
    return OnlookerCLI(
        LightningModule,
        LightningDataModule,
        trainer_class=OnlookerTrainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},  # every run has a new folder; without a logger there is one to reuse
        seed_everything_default=0,
        parser_kwargs={command: {"default_config_files": [str(DEFAULTS)]} for command in OnlookerCLI.subcommands()},
        args=args,
    )


if __name__ == "__main__":
    try:
        main()
    except EXPECTED_ERRORS as error:
        if os.environ.get("ONLOOKER_DEBUG"):
            raise
        sys.exit(f"error: {error}")
