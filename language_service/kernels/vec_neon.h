// The vocabulary of vec.h in NEON of 64-bit Arm: four registers of 4 lanes.
#pragma once

#include <arm_neon.h>

namespace tandem::inline TANDEM_SET {

using Reg = float32x4_t;

constexpr long kRegLanes = 4;
constexpr long kNumRegs = 32;

inline Reg splat_reg(float value) { return vdupq_n_f32(value); }
inline Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
inline Reg sub(Reg a, Reg b) { return vsubq_f32(a, b); }
inline Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
inline Reg div(Reg a, Reg b) { return vdivq_f32(a, b); }
inline Reg max(Reg a, Reg b) { return vmaxq_f32(a, b); }
inline Reg fmadd(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
inline Reg fmsub(Reg a, Reg b, Reg c) { return vfmaq_f32(vnegq_f32(c), a, b); }
inline void add_product(Reg& sum, Reg a, Reg b) { sum = fmadd(a, b, sum); }

inline Reg select_first(long count, Reg yes, Reg no) {
  constexpr std::int32_t kIndices[] = {0, 1, 2, 3};
  return vbslq_f32(vcltq_s32(vld1q_s32(kIndices), vdupq_n_s32(static_cast<int>(count))), yes, no);
}

inline float sum(Reg x) { return vaddvq_f32(x); }
inline float largest(Reg x) { return vmaxvq_f32(x); }
inline float first(Reg x) { return vgetq_lane_f32(x, 0); }
inline std::uint32_t equal_lanes(Reg a, Reg b) {
  constexpr std::uint32_t kBits[] = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vceqq_f32(a, b), vld1q_u32(kBits)));
}

// Beyond these limits, 2^x is 0 or inf. NaN stays.
inline Reg limit_exponent(Reg x) { return vminq_f32(vdupq_n_f32(160.0f), vmaxq_f32(vdupq_n_f32(-160.0f), x)); }
inline Reg round_to_even(Reg x) { return vrndnq_f32(x); }

inline Reg power(int32x4_t exponent) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(exponent, vdupq_n_s32(127)), 23));
}
// In two steps, because the exponents of the smallest results and of inf are no exponents of normal numbers.
inline Reg scale_by_power(Reg x, Reg exponent) {
  const int32x4_t whole = vcvtq_s32_f32(exponent), half = vshrq_n_s32(whole, 1);
  return vmulq_f32(vmulq_f32(x, power(half)), power(vsubq_s32(whole, half)));
}

inline Reg load_reg(const float* from) { return vld1q_f32(from); }
inline void store_reg(float* to, Reg values) { vst1q_f32(to, values); }

inline Reg load_reg(const bf16* from) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16)); }
// Rounds to nearest even.
inline void store_reg(bf16* to, Reg values) {
  const uint32x4_t bits = vreinterpretq_u32_f32(values);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  // Rounding could make a NaN infinite.
  vst1_u16(to, vshrn_n_u32(vbslq_u32(vceqq_f32(values, values), rounded, quiet), 16));
}

// The even or odd ones of 2 x kRegLanes neighbours.
inline uint32x4_t load_words(const bf16* from) { return vreinterpretq_u32_u16(vld1q_u16(from)); }
inline Reg load_even(const bf16* from) { return vreinterpretq_f32_u32(vshlq_n_u32(load_words(from), 16)); }
inline Reg load_odd(const bf16* from) {
  return vreinterpretq_f32_u32(vandq_u32(load_words(from), vdupq_n_u32(0xffff0000)));
}

}  // namespace tandem::inline TANDEM_SET

#include "vec_split.h"
