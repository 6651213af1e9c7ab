// The inner loop everything rests on: a few rows times one panel of packed columns.
//
// A panel holds 64 columns of a matrix [K, N] (64 rows of a weight [N, K]) as [K/2][64][2]: the processor multiplies
// two neighbours along K in one instruction, so they lie side by side, and a panel is read from front to back.
//
// Each sum is taken over K in order, in an instruction sequence that does not depend on how many rows there are. So a
// row's result is the same to the bit whatever shares its batch.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "bf16.h"

namespace tandem {

constexpr long kPanel = 64;                  // columns of a panel
constexpr long kPairStride = 2 * kPanel;     // elements from one pair along K to the next
constexpr long kTileRows = 6;                // 6 x 4 vectors of sums fill the registers
constexpr long kLine = 64;                   // bytes of a cache line

// sums[M][64] += rows[M][2 * pairs] x panel[pairs][64][2], reading `Lines` cache lines ahead at `ahead` for each pair.
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

// The same for a number of rows, 1 to 6, known only now.
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
