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
    alignas(64) float wide[M * kMaxGroup];
    for (int m = 0; m < M; ++m)
      for (long i = 0; i < group.size; i += kLanes) store(wide + m * kMaxGroup + i, load(x + m * stride + i));
    for (long column = 0; column < kColumns; column += 2 * kRegLanes) {
      Reg acc[M][2];
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v)
          acc[m][v] = mul(splat_reg(-x_sums[m * x_sums_stride]), load_reg(group.zeros + column + v * kRegLanes));
      for (long input = 0; input < group.size; ++input) {
        const float* from = columns_ + input * kColumns + column;
        const Reg first = load_reg(from), second = load_reg(from + kRegLanes);
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m) {
          const Reg factor = splat_reg(wide[m * kMaxGroup + input]);
          add_product(acc[m][0], factor, first);
          add_product(acc[m][1], factor, second);
        }
      }
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          float* to = sums + m * kColumns + column + v * kRegLanes;
          const Reg scaled = mul(acc[m][v], load_reg(group.scales + column + v * kRegLanes));
          store_reg(to, add(load_reg(to), scaled));
        }
    }
  }

  alignas(64) float columns_[kMaxGroup * kColumns];  // [inputs][64]
};

void multiply_many_w4a16(const LowBit& weight, const LowBitRows& rows, int num_threads) {
  multiply_w4a16<kManyTileRows>(weight, rows, LowBitProducts::kStoredZero, num_threads, [] { return UnpackedGroup(); });
}

}  // namespace
}  // namespace tandem::inline TANDEM_SET
