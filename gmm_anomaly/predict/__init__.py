"""Predicting images and videos: what comes in, what comes out, and the command around it."""
