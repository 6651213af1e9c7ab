// Brings rows of keys and values, given by address, into panels (tile.h), and fetches those needed next meanwhile.
#pragma once

#include <immintrin.h>

#include "tile.h"

namespace tandem {

// Reads a line of this tile and fetches the same line of the next: one each, since the processor is held up once it
// waits for some two dozen. Into the second-level cache, as the first has no room for a tile beside its panels.
inline __m512i take(const bf16* from, const bf16* coming) {
  _mm_prefetch(reinterpret_cast<const char*>(coming), _MM_HINT_T1);
  return _mm512_loadu_si512(from);
}

// Writes 32 elements of 16 rows as 16 pairs of a panel: a transposition of 16 x 16 words.
inline void pack_keys(const bf16* const* rows, const bf16* const* coming, long element, bf16* to) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = take(rows[i] + element, coming[i] + element);
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  // r[4 i + j] holds word 4 l + j of rows 4 i to 4 i + 3 in its quarter l.
  for (int j = 0; j < 4; ++j) {
    const __m512i low02 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
    const __m512i low13 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i high02 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const __m512i high13 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    _mm512_storeu_si512(to + (0 + j) * kPairStride, _mm512_shuffle_i32x4(low02, high02, 0x88));
    _mm512_storeu_si512(to + (4 + j) * kPairStride, _mm512_shuffle_i32x4(low13, high13, 0x88));
    _mm512_storeu_si512(to + (8 + j) * kPairStride, _mm512_shuffle_i32x4(low02, high02, 0xdd));
    _mm512_storeu_si512(to + (12 + j) * kPairStride, _mm512_shuffle_i32x4(low13, high13, 0xdd));
  }
}

// Writes 32 elements of two neighbouring rows side by side.
inline void pack_values(const bf16* const* rows, const bf16* const* coming, long element, bf16* to) {
  alignas(64) static constexpr std::uint16_t kLow[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i a = take(rows[0] + element, coming[0] + element);
  const __m512i b = take(rows[1] + element, coming[1] + element);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
  _mm512_storeu_si512(to + 2 * kLanes, _mm512_permutex2var_epi16(a, high, b));
}

}  // namespace tandem
