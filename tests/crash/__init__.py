"""Crash campaigns: what was acknowledged is there afterwards, whatever is killed, refused, full or locked in between.

    make crash                                   every part, the long way
    make crash ARGS="--only disk --seed 7"       one part, as it was with that seed

Each part is a function that takes a folder, a seed and a count, and returns what it found.
"""
