"""The ids 0..23 of the TU Graz semantic drone data set that scenes are painted with."""

PAVED, DIRT, GRASS, GRAVEL, WATER, ROCKS, POOL, VEGETATION, ROOF, WALL, WINDOW = range(1, 12)
FENCE, FENCE_POLE, PERSON, DOG, CAR, BICYCLE, TREE, BALD_TREE, AR_MARKER, OBSTACLE = range(13, 23)
