// Vectors of 16 bfloat16 numbers: computed in float32, rounded once when stored.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace tandem {

using bf16 = std::uint16_t;

constexpr long kLanes = 16;

// Returns a mask of the first `count` lanes, of all lanes from 16 on.
inline __mmask16 first_lanes(long count) {
  return count >= kLanes ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
}

inline __m512 widen(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline __m512 load(const bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }

inline __m512 load(const bf16* from, __mmask16 lanes) { return widen(_mm256_maskz_loadu_epi16(lanes, from)); }

inline void store(bf16* to, __m512 values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
}

inline void store(bf16* to, __m512 values, __mmask16 lanes) {
  _mm256_mask_storeu_epi16(to, lanes, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
}

// Returns 2^x within two units in the last place. Very small inputs give 0, very large ones inf, and NaN gives NaN.
inline __m512 exp2(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);  // in [-1/2, 1/2]
  // The Taylor series of e^(ln 2 * rest). The first omitted term is below 2^-27.
  constexpr float kFactors[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                                2.4022651e-1f, 6.9314718e-1f, 1.0f};
  __m512 sum = _mm512_set1_ps(1.5252734e-5f);
  for (const float factor : kFactors) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(sum, whole);
}

}  // namespace tandem
