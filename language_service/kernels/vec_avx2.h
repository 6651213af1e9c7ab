// The vocabulary of vec.h in AVX2 with FMA: two registers of 8 lanes.
#pragma once

#include <immintrin.h>

namespace tandem::inline TANDEM_SET {

using Reg = __m256;

constexpr long kRegLanes = 8;
constexpr long kNumRegs = 16;

inline Reg splat_reg(float value) { return _mm256_set1_ps(value); }
inline Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
inline Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
inline Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
inline Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
inline Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
inline Reg fmadd(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
inline Reg fmsub(Reg a, Reg b, Reg c) { return _mm256_fmsub_ps(a, b, c); }
// Adds a * b to a sum in its register. With 12 sums, GCC would move them about, and some of them to memory.
inline void add_product(Reg& sum, Reg a, Reg b) { asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b)); }

inline Reg select_first(long count, Reg yes, Reg no) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i chosen = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(chosen));
}

inline float sum(Reg x) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float largest(Reg x) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline float first(Reg x) { return _mm256_cvtss_f32(x); }
inline std::uint32_t equal_lanes(Reg a, Reg b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }

// Beyond these limits, 2^x is 0 or inf. NaN stays, because min and max return their second argument then.
inline Reg limit_exponent(Reg x) {
  return _mm256_min_ps(_mm256_set1_ps(160.0f), _mm256_max_ps(_mm256_set1_ps(-160.0f), x));
}
inline Reg round_to_even(Reg x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline Reg power(__m256i exponent) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
}
// In two steps, because the exponents of the smallest results and of inf are no exponents of normal numbers.
inline Reg scale_by_power(Reg x, Reg exponent) {
  const __m256i whole = _mm256_cvtps_epi32(exponent), half = _mm256_srai_epi32(whole, 1);
  return _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(whole, half)));
}

inline Reg load_reg(const float* from) { return _mm256_loadu_ps(from); }
inline void store_reg(float* to, Reg values) { _mm256_storeu_ps(to, values); }

inline Reg load_reg(const bf16* from) {
  const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16));
}
// Rounds to nearest even.
inline void store_reg(bf16* to, Reg values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);  // rounding could make it infinite
  const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
  const __m256i words = _mm256_srli_epi32(chosen, 16);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

// The even or odd ones of 2 x kRegLanes neighbours.
inline __m256i load_words(const bf16* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Reg load_even(const bf16* from) { return _mm256_castsi256_ps(_mm256_slli_epi32(load_words(from), 16)); }
inline Reg load_odd(const bf16* from) {
  return _mm256_castsi256_ps(_mm256_and_si256(load_words(from), _mm256_set1_epi32(0xffff0000)));
}

}  // namespace tandem::inline TANDEM_SET

#include "vec_split.h"
