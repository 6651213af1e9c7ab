// Products of any number of rows with one piece of a panel, as linear.cpp and attention.cpp use them.
//
// An instruction set has one kind: vectors, or the tiles of AMX. They round differently, so a model never mixes them.
#pragma once

#include "panel.h"
#include "vec.h"

#if defined(TANDEM_TILES)
#include "product_tiles.h"
#else
#include "product_vectors.h"
#endif
