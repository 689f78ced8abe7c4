"""Watching a user's program: its processes, lines, modules and beats."""
