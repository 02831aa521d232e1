"""Predicting images, videos and cameras: what comes in, what comes out, and the command around it."""
