"""Predicting images and videos: what comes in, what comes out, and the command around it."""

# Of a predicted anomaly, in pixels: the smallest that SegmentMeIfYouCan keeps on its obstacle track.
MIN_AREA = 50
