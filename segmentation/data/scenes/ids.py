"""The ids 0..23 of the TU Graz semantic drone data set that scenes are painted with."""

PAVED = 1
DIRT = 2
GRASS = 3
GRAVEL = 4
WATER = 5
ROCKS = 6
POOL = 7
VEGETATION = 8
ROOF = 9
WALL = 10
WINDOW = 11
FENCE = 13
FENCE_POLE = 14
PERSON = 15
DOG = 16
CAR = 17
BICYCLE = 18
TREE = 19
BALD_TREE = 20
AR_MARKER = 21
OBSTACLE = 22
