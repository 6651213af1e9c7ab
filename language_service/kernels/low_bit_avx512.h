// Inner products with weights of 8 and 4 bits, for AVX-512 with VNNI and bfloat16.
#pragma once

#include <immintrin.h>

#include "low_bit_loops.h"

namespace tandem::inline TANDEM_SET {
namespace {

struct LowBitProducts {
  static constexpr long kTileRows = 6;         // 6 x 4 vectors of sums fill the registers
  static constexpr bool kShiftsRows = true;    // the instruction takes rows as 0 to 255
  static constexpr float kStoredZero = 0;      // the table of w4a16 has subtracted the 8 already

  static void w8a8(long count, long lines, const std::int8_t* x, long stride, const std::int8_t* panel, long quads,
                   std::int32_t* sums, Ahead ahead) {
    with_constant<kTileRows>(count, [&](auto m) {
      switch (lines) {
        case 4: return tile_w8a8<m, 4>(x, stride, panel, quads, sums, ahead);
        case 2: return tile_w8a8<m, 2>(x, stride, panel, quads, sums, ahead);
        default: return tile_w8a8<m, 1>(x, stride, panel, quads, sums, ahead);
      }
    });
  }

  static void w4a16(long count, bool prefetch, const bf16* x, long stride, const Group<float>& group,
                    const float* x_sums, long x_sums_stride, float* sums) {
    with_constant<kTileRows>(count, [&](auto m) {
      prefetch ? tile_w4a16<m, true>(x, stride, group, x_sums, x_sums_stride, sums)
               : tile_w4a16<m, false>(x, stride, group, x_sums, x_sums_stride, sums);
    });
  }

  static void w4a8(long count, bool prefetch, const std::int8_t* x, long stride, const Group<std::int32_t>& group,
                   const std::int32_t* x_sums, long x_sums_stride, float* sums) {
    with_constant<kTileRows>(count, [&](auto m) {
      prefetch ? tile_w4a8<m, true>(x, stride, group, x_sums, x_sums_stride, sums)
               : tile_w4a8<m, false>(x, stride, group, x_sums, x_sums_stride, sums);
    });
  }

 private:
  static __m512i four_bytes(const void* from) {
    std::int32_t bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return _mm512_set1_epi32(bytes);
  }

  // Adds products of unsigned and signed bytes. With its own intrinsic, gcc 12 moves sums to memory and back.
  static void add_products(__m512i& sums, __m512i unsigned_bytes, __m512i signed_bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(unsigned_bytes), "v"(signed_bytes));
  }

  // The tiles are not inlined: gcc would keep their sums in memory.
  template <int M, int Lines>
  [[gnu::noinline]] static void tile_w8a8(const std::int8_t* x, long stride, const std::int8_t* panel, long quads,
                                          std::int32_t* sums, Ahead ahead) {
    __m512i acc[M][4];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) acc[m][v] = _mm512_loadu_si512(sums + m * kColumns + 16 * v);
    for (long quad = 0; quad < quads; ++quad) {
      __m512i columns[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) columns[v] = _mm512_loadu_si512(panel + quad * kQuadBytes + 64 * v);
      ahead.fetch(Lines);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) {
        const __m512i four = four_bytes(x + m * stride + 4 * quad);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) add_products(acc[m][v], four, columns[v]);
      }
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) _mm512_storeu_si512(sums + m * kColumns + 16 * v, acc[m][v]);
  }

  // Adds scaled sums of a group to all sums.
  template <int M>
  static void add_scaled(const __m512 (&group_sums)[M][4], const float* scales, float* sums) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m512 scale = _mm512_load_ps(scales + 16 * v);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) {
        float* to = sums + m * kColumns + 16 * v;
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_mul_ps(group_sums[m][v], scale)));
      }
    }
  }

  template <int M, bool Prefetch>
  [[gnu::noinline]] static void tile_w4a16(const bf16* x, long stride, const Group<float>& group, const float* x_sums,
                                           long x_sums_stride, float* sums) {
    // -8 to 7 as bfloat16, twice: the instruction looks at five bits.
    alignas(64) static constexpr bf16 kValues[32] = {
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
        0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
        0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    const __m512i values = _mm512_load_si512(kValues);
    __m512 acc[M][4];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const __m512 x_sum = _mm512_set1_ps(x_sums ? -x_sums[m * x_sums_stride] : 0.0f);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        acc[m][v] = x_sums ? _mm512_mul_ps(x_sum, _mm512_load_ps(group.zeros + 16 * v)) : _mm512_setzero_ps();
    }
    for (long pair = 0; pair < group.size / 2; ++pair) {
      const std::uint8_t* from = group.weights + pair * kCacheLine;
      const __m512i words = _mm512_loadu_si512(from);
      if (Prefetch) _mm_prefetch(reinterpret_cast<const char*>(from) + kAheadBytes, _MM_HINT_T1);
      const __m512bh columns[4] = {
          reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(words, values)),
          reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), values)),
          reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), values)),
          reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), values))};
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) {
        const __m512bh two = reinterpret_cast<__m512bh>(four_bytes(x + m * stride + 2 * pair));
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], two, columns[v]);
      }
    }
    add_scaled(acc, group.scales, sums);
  }

  template <int M, bool Prefetch>
  [[gnu::noinline]] static void tile_w4a8(const std::int8_t* x, long stride, const Group<std::int32_t>& group,
                                          const std::int32_t* x_sums, long x_sums_stride, float* sums) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i acc[M][4];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const __m512i x_sum = _mm512_set1_epi32(-x_sums[m * x_sums_stride]);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) acc[m][v] = _mm512_mullo_epi32(x_sum, _mm512_load_si512(group.zeros + 16 * v));
    }
    for (long quad = 0; quad < group.size / 4; ++quad) {
      const std::uint8_t* from = group.weights + quad * 2 * kCacheLine;
      const __m512i first = _mm512_loadu_si512(from), second = _mm512_loadu_si512(from + kCacheLine);
      if (Prefetch) {
        _mm_prefetch(reinterpret_cast<const char*>(from) + kAheadBytes, _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(from) + kAheadBytes + kCacheLine, _MM_HINT_T1);
      }
      const __m512i columns[4] = {
          _mm512_and_si512(first, low), _mm512_and_si512(_mm512_srli_epi16(first, 4), low),
          _mm512_and_si512(second, low), _mm512_and_si512(_mm512_srli_epi16(second, 4), low)};
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) {
        const __m512i four = four_bytes(x + m * stride + 4 * quad);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) add_products(acc[m][v], columns[v], four);
      }
    }
    __m512 converted[M][4];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) converted[m][v] = _mm512_cvtepi32_ps(acc[m][v]);
    add_scaled(converted, group.scales, sums);
  }
};

}  // namespace
}  // namespace tandem::inline TANDEM_SET
