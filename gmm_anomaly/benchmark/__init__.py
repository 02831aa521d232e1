"""Measurements behind ``tools/benchmark.py``, one module a subject.

A subject module has a docstring that says what it measures, ``add_arguments(parser)`` for its own flags, and
``run(args) -> dict`` that prints a table and returns everything in it as plain numbers.
"""
