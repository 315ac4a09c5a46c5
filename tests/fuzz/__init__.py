"""Hostile input: targets, the campaign runner, and what once failed."""
