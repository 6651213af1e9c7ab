// Unpacks groups of w4a16 (low_bit.h) to panels of bfloat16, and prefetches the groups that follow.
#pragma once

#include "low_bit_loops.h"

namespace tandem::inline TANDEM_SET {
namespace {

// The stored numbers 0 to 15 as bfloat16, if 8 is to be subtracted later, or else -8 to 7.
alignas(64) constexpr bf16 kAllNumbers[24] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                              0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                                              0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
constexpr const bf16* kNumbers = kAllNumbers + static_cast<long>(LowBitProducts::kStoredZero);

// Writes 32 words of w4a16, bits `shift` to `shift` + 3 of each.
void unpack_words(const std::uint8_t* from, int shift, bf16* to) {
#if defined(__AVX512BW__)
  const __m512i numbers = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(kNumbers)));
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_srli_epi16(_mm512_loadu_si512(from), shift), numbers));
#elif defined(__ARM_NEON)
  // The low bytes of all numbers, then their high bytes.
  const uint8x16x2_t bytes = vld2q_u8(reinterpret_cast<const std::uint8_t*>(kNumbers));
  for (int i = 0; i < 4; ++i) {
    const uint16x8_t words = vshlq_u16(vreinterpretq_u16_u8(vld1q_u8(from + 16 * i)), vdupq_n_s16(-shift));
    const uint16x8_t number = vandq_u16(words, vdupq_n_u16(15));
    const uint16x8_t indices = vorrq_u16(vorrq_u16(number, vshlq_n_u16(number, 8)), vdupq_n_u16(0x1000));
    vst1q_u16(to + 8 * i, vreinterpretq_u16_u8(vqtbl2q_u8(bytes, vreinterpretq_u8_u16(indices))));
  }
#else
  for (int i = 0; i < 32; ++i) {
    std::uint16_t word;
    std::memcpy(&word, from + 2 * i, sizeof word);
    to[i] = kNumbers[word >> shift & 15];
  }
#endif
}

// Writes a group of w4a16 as [group / 2][64][2] numbers.
void unpack_to_bf16(const Group<float>& group, bf16* to) {
  for (long pair = 0; pair < group.size / 2; ++pair) {
    const std::uint8_t* line = group.weights + pair * kCacheLine;
    prefetch(line + kAheadBytes);
    for (int part = 0; part < 4; ++part) unpack_words(line, 4 * part, to + pair * 2 * kColumns + 32 * part);
  }
}

}  // namespace
}  // namespace tandem::inline TANDEM_SET
