// Products of many rows with weights of w4a16, for AVX2.
//
// A group is unpacked to float32 once for all rows of a block. The numbers and their order are those of low_bit_avx2.h.
#pragma once

#include "low_bit_avx2.h"

namespace tandem::inline TANDEM_SET {
namespace {

constexpr long kManyRows = 6;      // from which on this is faster
constexpr long kManyTileRows = 6;  // 6 x 2 sums, two vectors of columns and a factor fill the registers

// Multiplies rows by a group.
class UnpackedGroup {
 public:
  UnpackedGroup() {}  // the numbers are written before they are read

  void operator()(long count, bool is_first, const bf16* x, long stride, const Group<float>& group,
                  const float* x_sums, long x_sums_stride, float* sums) {
    if (is_first) unpack(group);
    with_constant<kManyTileRows>(count, [&](auto m) { tile<m>(x, stride, group, x_sums, x_sums_stride, sums); });
  }

 private:
  void unpack(const Group<float>& group) {
    const __m256i nibble = _mm256_set1_epi32(15);
    for (long pair = 0; pair < group.size / 2; ++pair) {
      const std::uint8_t* line = group.weights + pair * kCacheLine;
      prefetch(line + kAheadBytes);
      for (int half = 0; half < 2; ++half) {
        __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line) + half);
        float* to = columns_ + 2 * pair * kColumns + 8 * half;
        for (int part = 0; part < 8; ++part, words = _mm256_srli_epi32(words, 4))
          _mm256_store_ps(to + part / 4 * kColumns + part % 4 * 16,
                          _mm256_cvtepi32_ps(_mm256_and_si256(words, nibble)));
      }
    }
  }

  template <int M>
  [[gnu::noinline]] void tile(const bf16* x, long stride, const Group<float>& group, const float* x_sums,
                              long x_sums_stride, float* sums) const {
    alignas(32) float wide[M * kMaxGroup];
    for (int m = 0; m < M; ++m)
      for (long i = 0; i < group.size; i += 8) {
        const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + m * stride + i));
        _mm256_store_ps(wide + m * kMaxGroup + i,
                        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16)));
      }
    for (long column = 0; column < kColumns; column += 16) {
      __m256 acc[M][2];
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v)
          acc[m][v] = _mm256_mul_ps(_mm256_set1_ps(-x_sums[m * x_sums_stride]),
                                    _mm256_load_ps(group.zeros + column + 8 * v));
      for (long input = 0; input < group.size; ++input) {
        const float* from = columns_ + input * kColumns + column;
        const __m256 first = _mm256_load_ps(from), second = _mm256_load_ps(from + 8);
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m) {
          const __m256 factor = _mm256_broadcast_ss(wide + m * kMaxGroup + input);
          add_product(acc[m][0], factor, first);
          add_product(acc[m][1], factor, second);
        }
      }
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          float* to = sums + m * kColumns + column + 8 * v;
          const __m256 scaled = _mm256_mul_ps(acc[m][v], _mm256_load_ps(group.scales + column + 8 * v));
          _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), scaled));
        }
    }
  }

  // In its register: with 12 sums, GCC would move some of them to memory.
  static void add_product(__m256& sum, __m256 a, __m256 b) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  }

  alignas(64) float columns_[kMaxGroup * kColumns];  // [inputs][64]
};

void multiply_many_w4a16(const LowBit& weight, const LowBitRows& rows, int num_threads) {
  multiply_w4a16<kManyTileRows>(weight, rows, LowBitProducts::kStoredZero, num_threads, [] { return UnpackedGroup(); });
}

}  // namespace
}  // namespace tandem::inline TANDEM_SET
