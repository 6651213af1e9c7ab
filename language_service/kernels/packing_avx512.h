// Packing in AVX-512, see packing.h.
#pragma once

#include <immintrin.h>

namespace tandem::inline TANDEM_SET {

// Loads a cache line of this tile and prefetches the same line of the next tile. Only one prefetch per load, because
// the processor stalls at about two dozen pending ones. Prefetches go to the second-level cache: the first has no room
// for a tile and its panels.
inline __m512i load_and_prefetch(const bf16* from, const bf16* next) {
  prefetch(next);
  return _mm512_loadu_si512(from);
}

// Transposes 16 x 16 words.
inline void pack_keys(const bf16* const* rows, const bf16* const* next, long element, bf16* to) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = load_and_prefetch(rows[i] + element, next[i] + element);
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
  // Quarter l of r[4 i + j] is word 4 l + j of rows 4 i to 4 i + 3.
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

inline void pack_values(const bf16* const* rows, const bf16* const* next, long element, bf16* to) {
  alignas(64) static constexpr std::uint16_t kLow[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i a = load_and_prefetch(rows[0] + element, next[0] + element);
  const __m512i b = load_and_prefetch(rows[1] + element, next[1] + element);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
  _mm512_storeu_si512(to + 2 * kLanes, _mm512_permutex2var_epi16(a, high, b));
}

}  // namespace tandem::inline TANDEM_SET
