"""Video files and folders of images, read and written frame by frame with exact times and colours."""

from unflicker.video.base import Frame, Reader, VideoInfo, Writer
from unflicker.video.reader import FolderReader, VideoReader, open_reader
from unflicker.video.writer import FolderWriter, VideoWriter, open_writer

__all__ = [
    "FolderReader",
    "FolderWriter",
    "Frame",
    "Reader",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "Writer",
    "open_reader",
    "open_writer",
]
