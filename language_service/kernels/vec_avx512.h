// The vocabulary of vec.h in AVX-512. With BF16, one instruction rounds.
#pragma once

#include <immintrin.h>

namespace tandem::inline TANDEM_SET {

using Floats = __m512;
using Reg = __m512;  // the widest register
using Lanes = __mmask16;

constexpr long kRegLanes = 16;
constexpr long kNumRegs = 32;

// Returns a mask of the first `count` lanes, of all lanes from 16 on.
inline Lanes first_lanes(long count) { return count >= kLanes ? 0xffff : static_cast<Lanes>((1u << count) - 1); }

inline Floats splat(float value) { return _mm512_set1_ps(value); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats fmadd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fmsub(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
inline void add_product(Floats& sum, Floats a, Floats b) { sum = fmadd(a, b, sum); }
inline Floats select(Lanes lanes, Floats yes, Floats no) { return _mm512_mask_blend_ps(lanes, no, yes); }
inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }
inline float first(Floats x) { return _mm512_cvtss_f32(x); }
inline std::uint32_t equal_lanes(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }

inline Floats limit_exponent(Floats x) { return x; }  // scalef takes any exponent
inline Floats round_to_even(Floats x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats scale_by_power(Floats x, Floats exponent) { return _mm512_scalef_ps(x, exponent); }

inline Floats widen(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline __m256i narrow(Floats values) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values));
#else
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);  // rounding could make it infinite
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan, rounded, quiet), 16));
#endif
}

inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline Floats load(const float* from, Lanes lanes) { return _mm512_maskz_loadu_ps(lanes, from); }
inline Floats load(const bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline Floats load(const bf16* from, Lanes lanes) { return widen(_mm256_maskz_loadu_epi16(lanes, from)); }

inline void store(float* to, Floats values) { _mm512_storeu_ps(to, values); }
inline void store(float* to, Floats values, Lanes lanes) { _mm512_mask_storeu_ps(to, lanes, values); }
inline void store(bf16* to, Floats values) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(values)); }
inline void store(bf16* to, Floats values, Lanes lanes) { _mm256_mask_storeu_epi16(to, lanes, narrow(values)); }

inline Reg load_reg(const float* from) { return _mm512_loadu_ps(from); }
inline void store_reg(float* to, Reg values) { _mm512_storeu_ps(to, values); }
inline Reg splat_reg(float value) { return _mm512_set1_ps(value); }

// The even or odd ones of 2 x kRegLanes neighbours.
inline Reg load_even(const bf16* from) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(from), 16)); }
inline Reg load_odd(const bf16* from) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(from), _mm512_set1_epi32(0xffff0000)));
}

}  // namespace tandem::inline TANDEM_SET
