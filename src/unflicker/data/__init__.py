"""Clips: from files to train on, and a synthetic one whose truth is known."""

from unflicker.data.base import FilesVideo, FileVideo, FolderVideo, Recording, Video
from unflicker.data.cache import Cached, cached
from unflicker.data.clips import ClipDataset, load, read_frames
from unflicker.data.folder import open_folder, open_video, select
from unflicker.data.layouts import LAYOUTS
from unflicker.data.local_laplacian import EnhancedVideo, local_laplacian
from unflicker.data.scaled import ScaledVideo, scaled
from unflicker.data.scenes import SceneVideo, scenes
from unflicker.data.stills import StillVideo, stills
from unflicker.data.synthetic import demo_clip

__all__ = [
    "LAYOUTS",
    "Cached",
    "ClipDataset",
    "EnhancedVideo",
    "FileVideo",
    "FilesVideo",
    "FolderVideo",
    "Recording",
    "ScaledVideo",
    "SceneVideo",
    "StillVideo",
    "Video",
    "cached",
    "demo_clip",
    "load",
    "local_laplacian",
    "open_folder",
    "open_video",
    "read_frames",
    "scaled",
    "scenes",
    "select",
    "stills",
]
