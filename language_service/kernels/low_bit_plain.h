// Inner products with weights of 8 and 4 bits in plain C++, for every other processor.
#pragma once

#include "low_bit_loops.h"

namespace tandem::inline TANDEM_SET {
namespace {

struct LowBitProducts {
  static constexpr long kTileRows = 4;
  static constexpr bool kShiftsRows = false;
  static constexpr float kStoredZero = 0;

  static void w8a8(long count, long, const std::int8_t* x, long stride, const std::int8_t* panel, long quads,
                   std::int32_t* sums, Ahead) {
    for (long row = 0; row < count; ++row)
      for (long quad = 0; quad < quads; ++quad) {
        const std::int8_t *four = x + row * stride + 4 * quad, *columns = panel + quad * kQuadBytes;
        for (long c = 0; c < kColumns; ++c)
          for (long i = 0; i < 4; ++i) sums[row * kColumns + c] += four[i] * columns[4 * c + i];
      }
  }

  static void w4a16(long count, bool, const bf16* x, long stride, const Group<float>& group, const float* x_sums,
                    long x_sums_stride, float* sums) {
    for (long row = 0; row < count; ++row) {
      float acc[kColumns];
      for (long c = 0; c < kColumns; ++c) acc[c] = x_sums ? -x_sums[row * x_sums_stride] * group.zeros[c] : 0.0f;
      for (long i = 0; i < group.size; ++i) {
        const float number = widen(x[row * stride + i]);
        for (long c = 0; c < kColumns; ++c) {
          std::uint16_t word;
          std::memcpy(&word, group.weights + i / 2 * kCacheLine + 2 * (c % 16 * 2 + i % 2), sizeof word);
          const int value = (word >> c / 16 * 4 & 15) - 8;
          acc[c] += number * static_cast<float>(value);
        }
      }
      add_scaled(acc, group.scales, sums + row * kColumns);
    }
  }

  static void w4a8(long count, bool, const std::int8_t* x, long stride, const Group<std::int32_t>& group,
                   const std::int32_t* x_sums, long x_sums_stride, float* sums) {
    for (long row = 0; row < count; ++row) {
      std::int32_t acc[kColumns];
      for (long c = 0; c < kColumns; ++c) acc[c] = -x_sums[row * x_sums_stride] * group.zeros[c];
      for (long i = 0; i < group.size; ++i)
        for (long c = 0; c < kColumns; ++c) {
          const int byte = group.weights[i / 4 * 2 * kCacheLine + c / 32 * kCacheLine + c % 16 * 4 + i % 4];
          acc[c] += x[row * stride + i] * (byte >> c / 16 % 2 * 4 & 15);
        }
      add_scaled(acc, group.scales, sums + row * kColumns);
    }
  }

 private:
  template <class Number>
  static void add_scaled(const Number* group_sums, const float* scales, float* sums) {
    for (long c = 0; c < kColumns; ++c) sums[c] += static_cast<float>(group_sums[c]) * scales[c];
  }
};

}  // namespace
}  // namespace tandem::inline TANDEM_SET
