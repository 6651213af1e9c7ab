// Packing in NEON, see packing.h.
#pragma once

#include <arm_neon.h>

namespace tandem::inline TANDEM_SET {

// Writes 8 elements of 4 rows as 4 pairs: transposes 4 x 4 words.
inline void pack_four_keys(const bf16* const* rows, long element, bf16* to) {
  const uint32x4x2_t first = vtrnq_u32(load_words(rows[0] + element), load_words(rows[1] + element));
  const uint32x4x2_t second = vtrnq_u32(load_words(rows[2] + element), load_words(rows[3] + element));
  for (int j = 0; j < 2; ++j) {  // words j and 2 + j
    const uint32x4_t low = vcombine_u32(vget_low_u32(first.val[j]), vget_low_u32(second.val[j]));
    const uint32x4_t high = vcombine_u32(vget_high_u32(first.val[j]), vget_high_u32(second.val[j]));
    vst1q_u16(to + j * kPairStride, vreinterpretq_u16_u32(low));
    vst1q_u16(to + (2 + j) * kPairStride, vreinterpretq_u16_u32(high));
  }
}

inline void pack_keys(const bf16* const* rows, const bf16* const* next, long element, bf16* to) {
  for (int i = 0; i < 16; i += 4) {
    for (int row = i; row < i + 4; ++row) prefetch(next[row] + element);
    for (long word = 0; word < 16; word += 4)
      pack_four_keys(rows + i, element + 2 * word, to + word * kPairStride + 2 * i);
  }
}

inline void pack_values(const bf16* const* rows, const bf16* const* next, long element, bf16* to) {
  for (int row = 0; row < 2; ++row) prefetch(next[row] + element);
  for (long i = 0; i < 32; i += 8)
    vst2q_u16(to + 2 * i, uint16x8x2_t{vld1q_u16(rows[0] + element + i), vld1q_u16(rows[1] + element + i)});
}

}  // namespace tandem::inline TANDEM_SET
