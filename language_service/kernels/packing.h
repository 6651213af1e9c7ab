// Packs rows of keys and values, given by address, into panels (panel.h), and prefetches the rows of the next tile.
//
// `pack_keys` writes 32 elements of 16 rows as 16 pairs of a panel. `pack_values` interleaves 32 elements of two
// neighbouring rows. Both read a whole cache line of each row, and prefetch the same line of the next tile.
#pragma once

#include "panel.h"
#include "vec.h"

#if defined(__AVX512F__)
#include "packing_avx512.h"
#elif defined(__AVX2__)
#include "packing_avx2.h"
#else
#include "packing_neon.h"
#endif
