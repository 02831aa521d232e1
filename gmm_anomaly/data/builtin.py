"""Registers every data set of the project with Detectron2's catalogs; touches no files."""

from __future__ import annotations

from .ade20k import register_ade20k
from .camvid import register_camvid
from .camvid_held_out import register_camvid_held_out
from .camvid_ood import register_camvid_ood
from .cityscapes import register_cityscapes
from .coco_stuff import register_coco_stuff
from .fishyscapes_lost_and_found import register_fishyscapes_lost_and_found
from .fishyscapes_static import register_fishyscapes_static
from .lost_and_found import register_lost_and_found
from .road_anomaly import register_road_anomaly
from .road_anomaly21 import register_road_anomaly21
from .road_obstacle21 import register_road_obstacle21
from .street_hazards import register_street_hazards
from .streets.datasets import register_streets


def register_all() -> None:
    register_streets()
    register_camvid()
    register_camvid_ood()
    register_camvid_held_out()
    register_cityscapes()
    register_road_anomaly21()
    register_road_obstacle21()
    register_lost_and_found()
    register_fishyscapes_lost_and_found()
    register_fishyscapes_static()
    register_road_anomaly()
    register_street_hazards()
    register_ade20k()
    register_coco_stuff()
