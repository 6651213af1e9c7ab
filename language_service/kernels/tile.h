// The inner loop of all products: a few rows times one panel of packed columns.
//
// A panel is 64 columns of a matrix [K, N], which are 64 rows of a weight [N, K], stored as [K/2][64][2]. One
// instruction multiplies two neighbours along K, so they lie side by side. A panel is read from front to back.
//
// Every sum runs over K in order, with instructions that do not depend on the number of rows. So the result of a row is
// the same, bit by bit, in every batch.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "bf16.h"

namespace tandem {

constexpr long kPanel = 64;                  // columns per panel
constexpr long kPairStride = 2 * kPanel;     // elements from one pair along K to the next
constexpr long kTileRows = 6;                // 6 x 4 vectors of sums fill the registers
constexpr long kLine = 64;                   // bytes per cache line

// Computes sums[M][64] += rows[M][2 * pairs] x panel[pairs][64][2]. Prefetches `Lines` cache lines of `ahead` per pair.
template <int M, int Lines>
inline void tile(const bf16* rows, long stride, const bf16* panel, long pairs, float* sums, const char* ahead) {
  __m512 acc[M][4];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) acc[m][v] = _mm512_loadu_ps(sums + m * kPanel + v * kLanes);
  for (long pair = 0; pair < pairs; ++pair) {
    __m512bh columns[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
      columns[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel + pair * kPairStride + v * 2 * kLanes));
#pragma GCC unroll 4
    for (int line = 0; line < Lines; ++line) _mm_prefetch(ahead + (pair * Lines + line) * kLine, _MM_HINT_T1);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      std::int32_t two;
      std::memcpy(&two, rows + m * stride + 2 * pair, sizeof two);
      const __m512bh both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], both, columns[v]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) _mm512_storeu_ps(sums + m * kPanel + v * kLanes, acc[m][v]);
}

// The same for 1 to 6 rows, chosen at run time.
template <int Lines>
inline void tile(long num_rows, const bf16* rows, long stride, const bf16* panel, long pairs, float* sums,
                 const char* ahead) {
  switch (num_rows) {
    case 1: return tile<1, Lines>(rows, stride, panel, pairs, sums, ahead);
    case 2: return tile<2, Lines>(rows, stride, panel, pairs, sums, ahead);
    case 3: return tile<3, Lines>(rows, stride, panel, pairs, sums, ahead);
    case 4: return tile<4, Lines>(rows, stride, panel, pairs, sums, ahead);
    case 5: return tile<5, Lines>(rows, stride, panel, pairs, sums, ahead);
    default: return tile<6, Lines>(rows, stride, panel, pairs, sums, ahead);
  }
}

}  // namespace tandem
