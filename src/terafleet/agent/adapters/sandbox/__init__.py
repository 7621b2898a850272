"""Walls around the program that runs AI models."""
