"""Tests of scripts/deps, of scripts/tree and of their messages on fresh Debian machines in chroots."""
