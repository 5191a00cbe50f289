"""Unit tests of the harness, run by make check."""
