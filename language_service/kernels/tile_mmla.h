// The inner loop of tile.h with Arm's products of small matrices (BF16, I8MM): one instruction multiplies two rows by two
// columns, eight bytes of each. Numbers are bfloat16 with sums of float, or signed bytes with sums of integers.
//
// By Arm's pseudo-code, BFMMLA rounds as one BFDOT after another. So a row alone, which takes BFDOT, gives the same bits.
#pragma once

#include <algorithm>
#include <cstring>

namespace tandem::inline TANDEM_SET {

inline float32x4_t load_four(const float* from) { return vld1q_f32(from); }
inline int32x4_t load_four(const std::int32_t* from) { return vld1q_s32(from); }
inline void store_four(float* to, float32x4_t values) { vst1q_f32(to, values); }
inline void store_four(std::int32_t* to, int32x4_t values) { vst1q_s32(to, values); }

// Exchanges two columns of two rows with the form that the instruction takes: a row after the other.
inline float32x4_t load_square(const float* row, const float* next) {
  return vcombine_f32(vld1_f32(row), vld1_f32(next));
}
inline int32x4_t load_square(const std::int32_t* row, const std::int32_t* next) {
  return vcombine_s32(vld1_s32(row), vld1_s32(next));
}
inline void store_square(float* row, float* next, float32x4_t values) {
  vst1_f32(row, vget_low_f32(values));
  vst1_f32(next, vget_high_f32(values));
}
inline void store_square(std::int32_t* row, std::int32_t* next, int32x4_t values) {
  vst1_s32(row, vget_low_s32(values));
  vst1_s32(next, vget_high_s32(values));
}

// Adds products with four columns, four bytes of each.
inline float32x4_t add_columns(float32x4_t sums, uint32x4_t row, uint32x4_t columns) {
  return vbfdotq_f32(sums, vreinterpretq_bf16_u32(row), vreinterpretq_bf16_u32(columns));
}
inline int32x4_t add_columns(int32x4_t sums, uint32x4_t row, uint32x4_t columns) {
  return vdotq_s32(sums, vreinterpretq_s8_u32(row), vreinterpretq_s8_u32(columns));
}
// Adds products of two rows with two columns.
inline float32x4_t add_square(float32x4_t sums, uint32x4_t rows, uint32x4_t columns) {
  return vbfmmlaq_f32(sums, vreinterpretq_bf16_u32(rows), vreinterpretq_bf16_u32(columns));
}
inline int32x4_t add_square(int32x4_t sums, uint32x4_t rows, uint32x4_t columns) {
  return vmmlaq_s32(sums, vreinterpretq_s8_u32(rows), vreinterpretq_s8_u32(columns));
}

template <class Sum>
using Four = decltype(load_four(static_cast<const Sum*>(nullptr)));

inline std::uint32_t word_at(const bf16* from) {
  std::uint32_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

// Multiplies one row.
template <int Lines, class Sum>
inline void tile_of_row(const bf16* row, const bf16* panel, long pairs, Sum* sums, Ahead ahead) {
  Four<Sum> acc[16];
#pragma GCC unroll 16
  for (int v = 0; v < 16; ++v) acc[v] = load_four(sums + 4 * v);
  for (long pair = 0; pair < pairs; ++pair) {
    if constexpr (Lines > 0) ahead.fetch(Lines);
    const uint32x4_t two = vdupq_n_u32(word_at(row + 2 * pair));
#pragma GCC unroll 16
    for (int v = 0; v < 16; ++v) acc[v] = add_columns(acc[v], two, load_words(panel + pair * kPairStride + 8 * v));
  }
#pragma GCC unroll 16
  for (int v = 0; v < 16; ++v) store_four(sums + 4 * v, acc[v]);
}

// Multiplies M rows by 2 V columns. Of an odd number of rows, the last one is computed twice.
template <int M, int V, int Lines, class Sum>
inline void tile_of_squares(const bf16* rows, long stride, const bf16* panel, long pairs, Sum* sums, Ahead ahead) {
  constexpr int kSquares = (M + 1) / 2;
  const auto second = [](int square) { return std::min(2 * square + 1, M - 1); };
  Four<Sum> acc[kSquares][V];
#pragma GCC unroll 3
  for (int s = 0; s < kSquares; ++s)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[s][v] = load_square(sums + 2 * s * kPanel + 2 * v, sums + second(s) * kPanel + 2 * v);
  const auto step = [&](const auto& load_row, const bf16* columns, bool has_next) {
    uint32x4_t factors[kSquares];
#pragma GCC unroll 3
    for (int s = 0; s < kSquares; ++s)
      factors[s] = vcombine_u32(load_row(rows + 2 * s * stride), load_row(rows + second(s) * stride));
#pragma GCC unroll 8
    for (int v = 0; v < V; v += 2) {  // four columns of this pair and of the next one
      const uint32x4_t pair = load_words(columns + 4 * v);
      const uint32x4_t next = has_next ? load_words(columns + kPairStride + 4 * v) : vdupq_n_u32(0);
      const uint32x4_t first_two = vzip1q_u32(pair, next), last_two = vzip2q_u32(pair, next);
#pragma GCC unroll 3
      for (int s = 0; s < kSquares; ++s) {
        acc[s][v] = add_square(acc[s][v], factors[s], first_two);
        acc[s][v + 1] = add_square(acc[s][v + 1], factors[s], last_two);
      }
    }
  };
  for (long pair = 0; pair + 1 < pairs; pair += 2) {
    if constexpr (Lines > 0) ahead.fetch(Lines);
    step([=](const bf16* row) { return vreinterpret_u32_u16(vld1_u16(row + 2 * pair)); }, panel + pair * kPairStride,
         true);
  }
  if (const long last = pairs - 1; pairs % 2)  // adding products with zeros changes no sum
    step([=](const bf16* row) { return vset_lane_u32(word_at(row + 2 * last), vdup_n_u32(0), 0); },
         panel + last * kPairStride, false);
#pragma GCC unroll 3
  for (int s = 0; s < kSquares; ++s)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store_square(sums + 2 * s * kPanel + 2 * v, sums + second(s) * kPanel + 2 * v, acc[s][v]);
}

template <int M, int Lines, class Sum>
inline void tile(const bf16* rows, long stride, const bf16* panel, long pairs, Sum* sums, Ahead ahead) {
  if constexpr (M == 1) return tile_of_row<Lines>(rows, panel, pairs, sums, ahead);
  constexpr int kSquareColumns = M <= 2 ? 16 : 8;  // sums of all rows stay in registers
  constexpr int kPasses = kPanel / (2 * kSquareColumns);
  constexpr int kLinesOfStep = (2 * Lines + kPasses - 1) / kPasses;  // of two pairs
  for (long pass = 0, column = 0; pass < kPasses; ++pass, column += 2 * kSquareColumns)
    tile_of_squares<M, kSquareColumns, kLinesOfStep>(rows, stride, panel + 2 * column, pairs, sums + column,
                                                     Lines ? ahead.part(pass, kPasses) : ahead);
}

}  // namespace tandem::inline TANDEM_SET
