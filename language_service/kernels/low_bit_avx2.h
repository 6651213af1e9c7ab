// Inner products with weights of 8 and 4 bits, for AVX2.
//
// maddubs adds two products of unsigned and signed bytes in 16 bits. No sum below leaves that range, so all are exact.
#pragma once

#include <immintrin.h>

#include "low_bit_loops.h"

namespace tandem::inline TANDEM_SET {
namespace {

struct LowBitProducts {
  static constexpr long kTileRows = 4;
  static constexpr bool kShiftsRows = false;
  static constexpr float kStoredZero = 8;

  static void w8a8(long count, long lines, const std::int8_t* x, long stride, const std::int8_t* panel, long quads,
                   std::int32_t* sums, Ahead ahead) {
    with_constant<kTileRows>(count, [&](auto m) {
      constexpr int kVectors = m == 1 ? 8 : m == 2 ? 4 : 2;  // sums that stay in registers
      constexpr long kPasses = 8 / kVectors;
      for (long pass = 0, v = 0; pass < kPasses; ++pass, v += kVectors)
        tile_w8a8<m, kVectors>(x, stride, panel + 32 * v, quads, sums + 8 * v, ahead.part(pass, kPasses),
                               (lines + kPasses - 1) / kPasses);
    });
  }

  static void w4a16(long count, bool prefetch, const bf16* x, long stride, const Group<float>& group,
                    const float* x_sums, long x_sums_stride, float* sums) {
    for (long row = 0; row < count; row += 2) {
      const bf16* rows = x + row * stride;
      const float* row_sums = x_sums + row * x_sums_stride;
      float* to = sums + row * kColumns;
      if (count - row == 1) {
        tile_w4a16<1, 2>(prefetch && row == 0, rows, stride, group, row_sums, x_sums_stride, to, 0);
      } else {
        tile_w4a16<2, 1>(prefetch && row == 0, rows, stride, group, row_sums, x_sums_stride, to, 0);
        tile_w4a16<2, 1>(false, rows, stride, group, row_sums, x_sums_stride, to, 1);
      }
    }
  }

  static void w4a8(long count, bool prefetch, const std::int8_t* x, long stride, const Group<std::int32_t>& group,
                   const std::int32_t* x_sums, long x_sums_stride, float* sums) {
    std::int32_t acc[kTileRows * kColumns];
    for (long row = 0; row < count; ++row)
      for (long i = 0; i < kColumns; ++i) acc[row * kColumns + i] = -x_sums[row * x_sums_stride] * group.zeros[i];
    with_constant<kTileRows>(count, [&](auto m) {
      constexpr int kVectors = m == 1 ? 4 : 1;  // sums that stay in registers. A row alone reads in order.
      for (long quad = 0; quad < group.size / 4; quad += 8)
        for (int v = 0; v < 4; v += kVectors)
          tile_w4a8<m, kVectors>(prefetch && v % 2 == 0, x + 4 * quad, stride,
                                 group.weights + quad * 2 * kCacheLine + 32 * v, acc + v / 2 * 32 + v % 2 * 8);
    });
    for (long row = 0; row < count; ++row)
      for (long i = 0; i < kColumns; ++i)
        sums[row * kColumns + i] += static_cast<float>(acc[row * kColumns + i]) * group.scales[i];
  }

 private:
  static __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

  static void store(void* to, __m256i values) { _mm256_storeu_si256(static_cast<__m256i*>(to), values); }

  static __m256i four_bytes(const void* from) {
    std::int32_t bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return _mm256_set1_epi32(bytes);
  }

  // |w| times x with the sign of w: at most 2 * 128 * 127 a pair, because no x is -128.
  template <int M, int Vectors>
  [[gnu::noinline]] static void tile_w8a8(const std::int8_t* x, long stride, const std::int8_t* panel, long quads,
                                          std::int32_t* sums, Ahead ahead, long lines) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i acc[M][Vectors];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) acc[m][v] = load(sums + m * kColumns + 8 * v);
    for (long quad = 0; quad < quads; ++quad) {
      ahead.fetch(lines);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        const __m256i column = load(panel + quad * kQuadBytes + 32 * v), absolute = _mm256_abs_epi8(column);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          const __m256i four = _mm256_sign_epi8(four_bytes(x + m * stride + 4 * quad), column);
          const __m256i pairs = _mm256_maddubs_epi16(absolute, four);
          acc[m][v] = _mm256_add_epi32(acc[m][v], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) store(sums + m * kColumns + 8 * v, acc[m][v]);
  }

  // Multiplies by some halves of all vectors of 16 columns.
  //
  // Values of columns 16j and up are not shifted down: they are 16^j times as large, exactly, until the group's scale.
  template <int M, int Halves>
  [[gnu::noinline]] static void tile_w4a16(bool prefetch, const bf16* x, long stride, const Group<float>& group,
                                           const float* x_sums, long x_sums_stride, float* sums, int first_half) {
    static constexpr float kPower[4] = {1, 16, 256, 4096};
    const __m256i masks[4] = {_mm256_set1_epi32(0xf), _mm256_set1_epi32(0xf0), _mm256_set1_epi32(0xf00),
                              _mm256_set1_epi32(0xf000)};
    __m256 acc[M][Halves][4];
#pragma GCC unroll 2
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int half = 0; half < Halves; ++half)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
          acc[m][half][v] = _mm256_mul_ps(_mm256_set1_ps(-kPower[v] * x_sums[m * x_sums_stride]),
                                          _mm256_load_ps(group.zeros + 16 * v + 8 * (first_half + half)));
    for (long pair = 0; pair < group.size / 2; ++pair) {
      const std::uint8_t* from = group.weights + pair * kCacheLine + 32 * first_half;
      if (prefetch) _mm_prefetch(reinterpret_cast<const char*>(from) + kAheadBytes, _MM_HINT_T1);
#pragma GCC unroll 2
      for (int half = 0; half < Halves; ++half) {
        __m256i words = load(from + 32 * half);
#pragma GCC unroll 2
        for (int input = 0; input < 2; ++input) {
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) {
            const __m256 columns = _mm256_cvtepi32_ps(_mm256_and_si256(words, masks[v]));
#pragma GCC unroll 2
            for (int m = 0; m < M; ++m)
              acc[m][half][v] = _mm256_fmadd_ps(_mm256_set1_ps(widen(x[m * stride + 2 * pair + input])), columns,
                                                acc[m][half][v]);
          }
          words = _mm256_srli_epi32(words, 16);
        }
      }
    }
#pragma GCC unroll 2
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int half = 0; half < Halves; ++half)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          const long column = 16 * v + 8 * (first_half + half);
          const __m256 scale = _mm256_mul_ps(_mm256_load_ps(group.scales + column), _mm256_set1_ps(1 / kPower[v]));
          float* to = sums + m * kColumns + column;
          _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), _mm256_mul_ps(acc[m][half][v], scale)));
        }
  }

  // Multiplies eight quads by some vectors of each: eight columns, and the eight 16 columns further.
  template <int M, int Vectors>
  [[gnu::noinline]] static void tile_w4a8(bool prefetch, const std::int8_t* x, long stride, const std::uint8_t* weights,
                                          std::int32_t* acc) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i sums[M][Vectors][2];  // in 16 bits: at most 8 quads of 2 * 15 * 127
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[m][v][0] = sums[m][v][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (long quad = 0; quad < 8; ++quad) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        const std::uint8_t* from = weights + quad * 2 * kCacheLine + 32 * v;
        if (prefetch && v % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(from) + kAheadBytes, _MM_HINT_T1);
        const __m256i bytes = load(from);
        const __m256i first = _mm256_and_si256(bytes, low), second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          const __m256i four = four_bytes(x + m * stride + 4 * quad);
          sums[m][v][0] = _mm256_add_epi16(sums[m][v][0], _mm256_maddubs_epi16(first, four));
          sums[m][v][1] = _mm256_add_epi16(sums[m][v][1], _mm256_maddubs_epi16(second, four));
        }
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          std::int32_t* to = acc + m * kColumns + v / 2 * 32 + v % 2 * 8 + 16 * i;
          store(to, _mm256_add_epi32(load(to), _mm256_madd_epi16(sums[m][v][i], ones)));
        }
  }
};

}  // namespace
}  // namespace tandem::inline TANDEM_SET
