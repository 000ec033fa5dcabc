"""Base of the DataModules of a data set's videos: source, frame store, splits, ranks, loaders."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_start_method, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Generic, Literal, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from datamodules.annotations.segment_source import SegmentSource
from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split, report_left_out, shared_videos
from datamodules.frames.cache import FrameCache
from datamodules.frames.store import DecodedFrames, FrameStore
from datamodules.sampling.samplers import Position, ShuffledBatches
from datamodules.settings import FrameSettings, LoaderSettings
from datamodules.text_files import check_names
from datamodules.video.picture_folder import Video

BatchT = TypeVar("BatchT")
Opened = TypeVar("Opened")
WATCH_SECONDS = 1.0
"""How often a worker looks whether its process is still there."""
STAGE_SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


class SourceDataModule(LightningDataModule, Generic[Opened]):
    """Base of the DataModules of a source's videos.

    Subclasses say what opening videos means (``_open``), which of them have frames to cache (``_cached``), and what a
    file without annotation is to them (``_unannotated``).

    Args:
        source: the data set.
        frames: size and cache of the frames. loader: what is drawn, and by whom.
        predict_videos: files to predict on; None predicts on the videos of the test split.
    """

    def __init__(
        self,
        source: DetectionSource | SegmentSource,
        frames: FrameSettings,
        loader: LoaderSettings,
        predict_videos: Sequence[str | Path] | None,
    ) -> None:
        super().__init__()
        self.source = source
        self.loader = loader
        self.store = frames.store()
        self.predict_videos = predict_videos
        # Files to predict on are passed over once: no use in keeping their frames.
        self.predict_store = self.store if predict_videos is None else DecodedFrames(frames.scale)
        self.skips_broken = False
        self._videos: dict[str, tuple[Opened, ...]] = {}

    def _open(self, videos: Sequence[Any], store: FrameStore) -> tuple[Opened, ...]:
        """Videos of the source, or without annotation, as the data sets take them."""
        raise NotImplementedError

    def _cached(self, videos: Sequence[Any]) -> list[Video]:
        """Where the frames are that a cache is to hold."""
        raise NotImplementedError

    def _unannotated(self, video_id: str, path: Path) -> Any:
        """A file to predict on as a video of the source."""
        raise NotImplementedError

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def prepare_data(self) -> None:
        """Make the data and fill the cache with what the stage at hand needs; both do nothing the second time."""
        splits = self._splits_at_hand()
        if not splits:
            return
        self.source.prepare()
        if isinstance(self.store, FrameCache):
            videos = [video for split in splits for video in self._cached(self.source.videos(split))]
            self.store.build(videos, skip_broken=self.skips_broken)

    def _splits_at_hand(self) -> tuple[Split, ...]:
        """Splits of the source that the stage at hand reads; all of them outside of a run."""
        stage = None if self.trainer is None else self.trainer.state.fn
        if stage == "predict" and self.predict_videos is not None:
            return ()
        return STAGE_SPLITS.get(stage or "", ("train", "val", "test"))

    def setup(self, stage: str) -> None:
        if stage == "predict" and self.predict_videos is not None:
            files = [self._unannotated(name, path) for name, path in _named(self.predict_videos)]
            self._videos["predict"] = self._open(files, self.predict_store)
            return
        for split in STAGE_SPLITS[stage]:
            if split not in self._videos:
                self._videos[split] = self._open(self.source.videos(split), self.store)
        if stage == "predict":
            self._videos["predict"] = self._videos["test"]
        if stage == "fit":
            self._tell_of_shared()

    def _tell_of_shared(self) -> None:
        """Warn of videos that are both trained on and evaluated, by name or by file."""

        def files(split: Split) -> dict[str, object]:
            return {
                video.video_id: video.path if isinstance(video, AnnotatedVideo) else video.media or video.video_id
                for video in self.source.videos(split)
            }

        shared = shared_videos(files("train"), files("val"))
        report_left_out(type(self.source).__name__, {"videos to evaluate are trained on too": shared})

    @property
    def input_files(self) -> tuple[Path, ...]:
        """The files to predict on that were named; results never replace them."""
        return tuple(Path(file) for file in self.predict_videos or ())

    def videos(self, split: Split | Literal["predict"]) -> tuple[Opened, ...]:
        """The videos of a split, or those to predict on, once ``setup`` has opened them."""
        if split not in self._videos:
            raise ValueError(f"the {split} videos are not open; call setup first")
        return self._videos[split]

    def keep_first(self, split: Split, count: int) -> None:
        """Leave all but the first videos of a split out, once ``setup`` has opened them."""
        self._videos[split] = self.videos(split)[:count]

    def frames_of(self, split: Split | Literal["predict"]) -> FrameStore:
        """Where the frames of these videos come from."""
        return self.predict_store if split == "predict" else self.store

    @property
    def rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _shuffled(self, size: int) -> ShuffledBatches:
        """Return this rank's training batches of ``size`` samples; resumed, those that it has not seen."""
        return ShuffledBatches(size, *self._drawn())

    def _drawn(self) -> tuple[int, int | None, int | None, int, int, Callable[[], Position] | None]:
        """Arguments of samplers of training batches: sizes, seed, rank, world size, and how far training has come."""
        loader, position = self.loader, None if self.trainer is None else self._position
        return loader.batch_size, loader.samples_per_epoch, loader.seed, self.rank, self.world_size, position

    def _position(self) -> Position:
        # Not the epoch that Lightning gives to samplers: resumed with max_steps it is one too many.
        return Position(self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1)

    def _loader(self, dataset: Dataset, sampler: Sampler, num_workers: int) -> DataLoader:
        """A loader whose sampler yields whole batches and whose data set returns them collated."""
        if num_workers > 0:
            # A bar's thread that starts while a worker is forked may leave that worker waiting for ever: in CPython
            # 3.11 the child takes a lock of the list of threads, which a thread that is being made holds.
            tqdm.monitor_interval = 0
        return LateLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            # Left to itself, a loader that does not collate turns the tuples of a batch into lists.
            collate_fn=_as_it_is,
            persistent_workers=num_workers > 0,
            worker_init_fn=_start_worker,
        )


class LateLoader(DataLoader):
    """Loader that asks for its first batch only when that is wanted, not when it is iterated over.

    Lightning makes the iterator before it has read from a checkpoint where training goes on, and worker processes
    would at once begin with the first batches of the first epoch.
    """

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the trainer's own progress says where to go on. Lightning takes a loader with this for resumable."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to load."""


def _as_it_is(batch: BatchT) -> BatchT:
    return batch


def _start_worker(worker: int) -> None:
    """Keep a worker to one thread (OpenCV starts one a core, and the cores are taken) and end it with its process.

    PyTorch's own watch over the process does not see that it was killed while a large batch waits to be fetched, nor
    before the worker had come as far as to look for it.
    """
    import cv2

    cv2.setNumThreads(0)
    Thread(target=_end_after, args=(_process_of_worker(),), daemon=True).start()


def _process_of_worker() -> int:
    """Return the process whose child a worker is, or was before that process ended."""
    maker = parent_process()
    # A fork server's children are not those of the process that has asked for them.
    return os.getppid() if maker is None or get_start_method() == "forkserver" else maker.pid


def _end_after(process: int) -> None:
    while os.getppid() == process:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _named(files: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Files with names as short as they can be told apart."""
    paths = [Path(file) for file in files]
    check_names(list(map(str, paths)), "predict_videos", "file")
    names = [path.stem for path in paths]
    if len({name.casefold() for name in names}) < len(names):  # "A" and "a" would share their files of results
        names = [str(path) for path in paths]
    return list(zip(names, paths, strict=True))
