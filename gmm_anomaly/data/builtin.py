"""Registers every data set of the project with Detectron2's catalogs; touches no files."""

from __future__ import annotations

from .ade20k import register_ade20k
from .camvid import register_camvid
from .cityscapes import register_cityscapes
from .coco_stuff import register_coco_stuff
from .fishyscapes import register_fishyscapes
from .lost_and_found import register_lost_and_found
from .road_anomaly import register_road_anomaly
from .smiyc import register_smiyc
from .street_datasets import register_streets
from .street_hazards import register_street_hazards


def register_all() -> None:
    register_streets()
    register_camvid()
    register_cityscapes()
    register_smiyc()
    register_lost_and_found()
    register_fishyscapes()
    register_road_anomaly()
    register_street_hazards()
    register_ade20k()
    register_coco_stuff()
