"""Video: files and folders of pictures as frames with their times.

``open_video`` reads frames by number, ``list_video`` lists their times and decodes next to nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "listing": ["VideoError"],
        "picture_folder": ["PictureFolder", "Video"],
        "readers": ["VideoReader", "list_video", "nearest_frame", "open_video"],
    },
)
