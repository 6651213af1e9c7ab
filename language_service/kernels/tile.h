// The inner loop of products on vectors: a few rows times one panel of packed columns.
//
// A panel is 64 columns of a matrix [K, N], which are 64 rows of a weight [N, K], stored as [K/2][64][2]. One
// instruction multiplies two neighbours along K, so they lie side by side. A panel is read from front to back.
//
// Every sum runs over K in order, with instructions that do not depend on the number of rows. So the result of a row is
// the same, bit by bit, in every batch.
#pragma once

#include "panel.h"
#include "vec.h"

#if defined(__AVX512BF16__)
#include "tile_bf16.h"
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__ARM_FEATURE_MATMUL_INT8)
#include "tile_mmla.h"
#else
#include "tile_fma.h"
#endif

namespace tandem::inline TANDEM_SET {

// Computes sums[num_rows][64] += rows[num_rows][2 * pairs] x panel[pairs][64][2] for 1 to 6 rows. Prefetches `ahead`, up
// to `Lines` cache lines per pair.
template <int Lines, class Sum>
inline void tile(long num_rows, const bf16* rows, long stride, const bf16* panel, long pairs, Sum* sums, Ahead ahead) {
  switch (num_rows) {
    case 1: return tile<1, Lines>(rows, stride, panel, pairs, sums, ahead);
    case 2: return tile<2, Lines>(rows, stride, panel, pairs, sums, ahead);
    case 3: return tile<3, Lines>(rows, stride, panel, pairs, sums, ahead);
    case 4: return tile<4, Lines>(rows, stride, panel, pairs, sums, ahead);
    case 5: return tile<5, Lines>(rows, stride, panel, pairs, sums, ahead);
    default: return tile<6, Lines>(rows, stride, panel, pairs, sums, ahead);
  }
}

}  // namespace tandem::inline TANDEM_SET
