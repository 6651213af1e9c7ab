// The inner loop of tile.h for processors without products of bfloat16: columns are widened by a shift or a mask, and
// multiplied in float32, the even one of a pair first.
#pragma once

#include <algorithm>

namespace tandem::inline TANDEM_SET {

// Registers of columns at a time. Sums, columns and one factor must fit. A single row takes the whole panel, so that it
// is read front to back.
template <int M>
constexpr int num_column_regs() {
  int count = kPanel / kRegLanes;
  while (M > 1 && M * count + count + 1 > kNumRegs) count /= 2;
  return count;
}

// Computes `V` registers of columns. Rows are float32, [M][2 * kPiecePairs].
template <int M, int V, int Lines>
inline void tile_columns(const float* rows, const bf16* panel, long pairs, float* sums, Ahead ahead) {
  Reg acc[M][V];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[m][v] = load_reg(sums + m * kPanel + v * kRegLanes);
  for (long pair = 0; pair < pairs; ++pair) {
    const bf16* const columns = panel + pair * kPairStride;
    if constexpr (Lines > 0) ahead.fetch(Lines);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Reg wide[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v)
        wide[v] = half ? load_odd(columns + v * 2 * kRegLanes) : load_even(columns + v * 2 * kRegLanes);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) {
        const Reg factor = splat_reg(rows[m * 2 * kPiecePairs + 2 * pair + half]);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
          if constexpr (M >= 5)
            add_product(acc[m][v], factor, wide[v]);
          else
            acc[m][v] = fmadd(factor, wide[v], acc[m][v]);
        }
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store_reg(sums + m * kPanel + v * kRegLanes, acc[m][v]);
}

template <int M, int Lines>
inline void tile(const bf16* rows, long stride, const bf16* panel, long pairs, float* sums, Ahead ahead) {
  constexpr int kColumns = num_column_regs<M>(), kPasses = kPanel / kRegLanes / kColumns;
  const long num_pieces = (pairs + kPiecePairs - 1) / kPiecePairs;
  alignas(64) float wide[M * 2 * kPiecePairs];
  for (long begin = 0; begin < pairs; begin += kPiecePairs) {
    const long count = std::min(kPiecePairs, pairs - begin);
    for (int m = 0; m < M; ++m)
      for (long i = 0; i < 2 * count; i += kLanes)
        store(wide + m * 2 * kPiecePairs + i, load(rows + m * stride + 2 * begin + i, first_lanes(2 * count - i)));
    const bf16* const piece = panel + begin * kPairStride;
    for (long pass = 0; pass < kPasses; ++pass)
      tile_columns<M, kColumns, (Lines + kPasses - 1) / kPasses>(
          wide, piece + pass * kColumns * 2 * kRegLanes, count, sums + pass * kColumns * kRegLanes,
          Lines ? ahead.part(begin / kPiecePairs * kPasses + pass, num_pieces * kPasses) : ahead);
  }
}

}  // namespace tandem::inline TANDEM_SET
