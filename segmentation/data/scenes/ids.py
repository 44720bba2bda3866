"""The ids of the TU Graz semantic drone data set that scenes are painted with."""

PAVED = 1
DIRT = 2
GRASS = 3
GRAVEL = 4
WATER = 5
POOL = 7
VEGETATION = 8
ROOF = 9
WALL = 10
FENCE = 13
PERSON = 15
CAR = 17
TREE = 19
OBSTACLE = 22
