"""Video files and folders of images, read and written frame by frame with exact times and colours."""

from .base import Frame, Reader, VideoInfo, Writer
from .reader import FolderReader, VideoReader, open_reader
from .writer import FolderWriter, VideoWriter, open_writer

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
