// Packing in AVX2, see packing.h.
#pragma once

#include <immintrin.h>

namespace tandem::inline TANDEM_SET {

inline __m256i low_halves(__m256i a, __m256i b) { return _mm256_permute2x128_si256(a, b, 0x20); }
inline __m256i high_halves(__m256i a, __m256i b) { return _mm256_permute2x128_si256(a, b, 0x31); }

// Writes 16 elements of 8 rows as 8 pairs: transposes 8 x 8 words.
inline void pack_eight_keys(const bf16* const* rows, long element, bf16* to) {
  __m256i r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = load_words(rows[i] + element);
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  // Half l of r[4 i + j] is word 4 l + j of rows 4 i to 4 i + 3.
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j * kPairStride), low_halves(r[j], r[4 + j]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (4 + j) * kPairStride), high_halves(r[j], r[4 + j]));
  }
}

inline void pack_keys(const bf16* const* rows, const bf16* const* next, long element, bf16* to) {
  for (int i = 0; i < 16; i += 8) {
    for (int row = i; row < i + 8; ++row) prefetch(next[row] + element);
    pack_eight_keys(rows + i, element, to + 2 * i);
    pack_eight_keys(rows + i, element + 16, to + 8 * kPairStride + 2 * i);
  }
}

inline void pack_values(const bf16* const* rows, const bf16* const* next, long element, bf16* to) {
  for (int row = 0; row < 2; ++row) prefetch(next[row] + element);
  auto* out = reinterpret_cast<__m256i*>(to);
  for (long i = 0; i < 32; i += 16, out += 2) {
    const __m256i a = load_words(rows[0] + element + i), b = load_words(rows[1] + element + i);
    const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
    _mm256_storeu_si256(out, low_halves(low, high));
    _mm256_storeu_si256(out + 1, high_halves(low, high));
  }
}

}  // namespace tandem::inline TANDEM_SET
