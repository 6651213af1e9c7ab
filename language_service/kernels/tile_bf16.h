// The inner loop of tile.h with AVX-512 BF16: one instruction multiplies a pair and adds both products.
#pragma once

#include <cstring>

namespace tandem::inline TANDEM_SET {

template <int M, int Lines>
inline void tile(const bf16* rows, long stride, const bf16* panel, long pairs, float* sums, Ahead ahead) {
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
    if constexpr (Lines > 0) ahead.fetch(Lines);
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

}  // namespace tandem::inline TANDEM_SET
