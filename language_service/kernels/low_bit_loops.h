// The loops around the inner products of low_bit_*.h, in plain C++.
//
// setup.py compiles them without contraction of a * b + c. So every instruction set rounds alike, and sums of integers
// are exact anyway: w8a8 and w4a8 give the same bits on every processor.
//
// Every sum runs over K in order, whatever the number of rows. So the result of a row is the same, bit by bit, in every
// batch.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>

#include "low_bit.h"
#include "panel.h"
#include "pool.h"

namespace tandem::inline TANDEM_SET {
namespace {

constexpr long kColumns = 64;     // per panel
constexpr long kMaxGroup = 128;   // inputs with a common scale, for 4 bits
constexpr long kMaxRows = 192;    // multiplied by a panel at a time
constexpr long kPiece = 256;      // quads per piece of a panel of 8 bits: 64 KiB
constexpr long kQuadBytes = 256;  // of all columns
constexpr long kCacheLine = 64;
constexpr long kAheadBytes = 8192;  // of a panel of 4 bits to prefetch ahead

// Calls body with `count`, 1 to Most, as a constant.
template <int Most, class Body>
void with_constant(long count, const Body& body) {
  if constexpr (Most > 1)
    if (count < Most) return with_constant<Most - 1>(count, body);
  body(std::integral_constant<int, Most>{});
}

float widen(bf16 value) { return std::bit_cast<float>(std::uint32_t{value} << 16); }

bf16 round_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<bf16>(value == value ? rounded : bits >> 16 | 0x40);  // a NaN stays one
}

// Rows of x, rounded to 8 bits for integer products.
struct Rounded {
  long stride;                            // bytes from row to row
  std::unique_ptr<std::int8_t[]> values;  // [num_rows][stride]
  std::unique_ptr<float[]> scales;        // [num_rows]
};

// Rounds a row to -127 to 127, half to even, and returns the scale. A row that is not finite gives NaN.
float round_row(const bf16* x, long width, std::int8_t* to) {
  bf16 largest = 0;  // absolute values are ordered as their bits are, with inf and NaN at the end
  for (long i = 0; i < width; ++i) largest = std::max<bf16>(largest, x[i] & 0x7fff);
  if (largest == 0 || largest >= 0x7f80) {
    std::fill_n(to, width, std::int8_t{0});
    return largest == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const float scale = widen(largest) / 127.0f;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves a rounded integer in the lowest bits
  for (long i = 0; i < width; ++i)
    to[i] = static_cast<std::int8_t>(std::bit_cast<std::int32_t>(widen(x[i]) / scale + kShift));
  return scale;
}

// Rounds all rows, filled up with zeros to whole quads. `flip` is 0x80 to get value + 128, or 0.
Rounded round_rows(const LowBitRows& rows, long width, int flip, int num_threads) {
  const long stride = (width + 3) / 4 * 4;
  Rounded rounded{stride, std::make_unique_for_overwrite<std::int8_t[]>(rows.num_rows * stride),
                  std::make_unique_for_overwrite<float[]>(rows.num_rows)};
  // With few rows, starting the threads takes longer than the work.
  split_evenly(rows.num_rows < 4 ? 1 : num_threads, rows.num_rows, [&](long row) {
    std::int8_t* to = rounded.values.get() + row * stride;
    rounded.scales[row] = round_row(rows.x + row * width, width, to);
    std::fill(to + width, to + stride, std::int8_t{0});
    if (flip)
      for (long i = 0; i < stride; ++i) to[i] = static_cast<std::int8_t>(to[i] ^ flip);
  });
  return rounded;
}

// Scales the sums of one row and panel, adds bias and residual, rounds them and stores the result.
void finish(const LowBit& weight, const LowBitRows& rows, long row, long panel, const float* sums, float scale) {
  const long column = panel * kColumns, count = std::min(kColumns, weight.num_columns - column);
  const long at = row * weight.num_columns + column;
  float values[kColumns];
  for (long i = 0; i < kColumns; ++i) values[i] = sums[i] * scale;
  if (weight.bias)
    for (long i = 0; i < count; ++i) values[i] += widen(weight.bias[column + i]);
  if (rows.residual)
    for (long i = 0; i < count; ++i) values[i] += widen(rows.residual[at + i]);
  if (rows.float_out) {
    std::copy_n(values, count, static_cast<float*>(rows.out) + at);
  } else {
    bf16* to = static_cast<bf16*>(rows.out) + at;
    for (long i = 0; i < count; ++i) to[i] = round_to_bf16(values[i]);
  }
}

// Multiplies rows by one piece of a panel of 8 bits and prefetches the piece after it.
template <class Set>
void multiply_piece(const std::int8_t* x, long stride, long num_rows, const std::int8_t* piece, long quads,
                    std::int32_t* sums) {
  const char* next = reinterpret_cast<const char*>(piece + quads * kQuadBytes);
  const Ahead ahead{next, next + quads * kQuadBytes};
  const long num_tiles = (num_rows + Set::kTileRows - 1) / Set::kTileRows;
  const long lines = num_tiles == 1 ? 4 : num_tiles < 4 ? 2 : 1;  // most per quad
  for (long index = 0; index < num_tiles; ++index) {
    const long row = num_rows * index / num_tiles, count = num_rows * (index + 1) / num_tiles - row;
    Set::w8a8(count, lines, x + row * stride, stride, piece, quads, sums + row * kColumns, ahead.part(index, num_tiles));
  }
}

// One panel of 8 bits.
struct BytePanel {
  const std::int8_t* columns;
  const float* scales;
  const std::int32_t* sums;

  BytePanel(const LowBit& weight, long panel, long quads)
      : columns(reinterpret_cast<const std::int8_t*>(weight.panels) + panel * (quads + 2) * kQuadBytes),
        scales(reinterpret_cast<const float*>(columns + quads * kQuadBytes)),
        sums(reinterpret_cast<const std::int32_t*>(scales + kColumns)) {}
};

// Scales the sums of a block of rows and one panel of 8 bits, and stores the results.
void finish_w8a8(const LowBit& weight, const LowBitRows& rows, long first, long num_rows, long panel,
                 const std::int32_t* sums, const float* column_scales, const float* row_scales) {
  for (long row = 0; row < num_rows; ++row) {
    float values[kColumns];
    for (long i = 0; i < kColumns; ++i) values[i] = static_cast<float>(sums[row * kColumns + i]) * column_scales[i];
    finish(weight, rows, first + row, panel, values, row_scales[first + row]);
  }
}

template <class Set>
void multiply_w8a8(const LowBit& weight, const LowBitRows& rows, int num_threads) {
  const Rounded rounded = round_rows(rows, weight.width, Set::kShiftsRows ? 0x80 : 0, num_threads);
  const long quads = rounded.stride / 4;
  split_evenly(num_threads, (weight.num_columns + kColumns - 1) / kColumns, [&](long index) {
    alignas(64) std::int32_t sums[kMaxRows * kColumns];
    const BytePanel panel(weight, index, quads);
    for (long first = 0; first < rows.num_rows; first += kMaxRows) {
      const long num_rows = std::min(kMaxRows, rows.num_rows - first);
      for (long i = 0; i < num_rows * kColumns; ++i)
        sums[i] = Set::kShiftsRows ? -128 * panel.sums[i % kColumns] : 0;  // x + 128 adds 128 times these
      for (long quad = 0; quad < quads; quad += kPiece)
        multiply_piece<Set>(rounded.values.get() + first * rounded.stride + 4 * quad, rounded.stride, num_rows,
                            panel.columns + quad * kQuadBytes, std::min(kPiece, quads - quad), sums);
      finish_w8a8(weight, rows, first, num_rows, index, sums, panel.scales, rounded.scales.get());
    }
  });
}

// One group of one panel of 4 bits.
template <class Zero>
struct Group {
  const std::uint8_t* weights;
  long size;  // inputs
  alignas(64) float scales[kColumns];
  alignas(64) Zero zeros[kColumns];  // to subtract from the values

  Group(const LowBit& weight, const std::uint8_t* at, Zero stored_zero) : weights(at), size(weight.group) {
    const std::uint8_t* after = at + size * kColumns / 2;
    if (weight.scale_bytes == 4) {
      std::memcpy(scales, after, sizeof scales);
    } else {
      const auto* from = reinterpret_cast<const bf16*>(after);
      for (long i = 0; i < kColumns; ++i) scales[i] = widen(from[i]);
    }
    const auto* given = reinterpret_cast<const std::int8_t*>(after + weight.scale_bytes * kColumns);
    for (long i = 0; i < kColumns; ++i)
      zeros[i] = stored_zero + (weight.has_zeros ? static_cast<Zero>(given[i]) : Zero{0});
  }

  static long bytes(const LowBit& weight) {
    return kColumns * (weight.group / 2 + weight.scale_bytes + (weight.has_zeros ? 1 : 0));
  }
};

// Returns the sums of each group of each row, [num_rows][width / group].
template <class Sum, class Number>
std::unique_ptr<Sum[]> sum_groups(const LowBit& weight, const Number* x, long num_rows, int num_threads) {
  const long groups = weight.width / weight.group;
  auto sums = std::make_unique_for_overwrite<Sum[]>(num_rows * groups);
  split_evenly(num_rows < 4 ? 1 : num_threads, num_rows * groups, [&, to = sums.get()](long index) {
    Sum lanes[16] = {};  // the same order of additions for every instruction set
    for (long i = 0; i < weight.group; i += 16)
      for (long lane = 0; lane < 16; ++lane) {
        const Number number = x[index * weight.group + i + lane];
        lanes[lane] += std::is_same_v<Number, bf16> ? static_cast<Sum>(widen(number)) : static_cast<Sum>(number);
      }
    for (long lane = 1; lane < 16; ++lane) lanes[0] += lanes[lane];
    to[index] = lanes[0];
  });
  return sums;
}

// Multiplies by a weight of 4 bits. make() returns what a thread calls for each group, and for each tile of rows:
// multiply(count, is_first, x, stride, group, x_sums, x_sums_stride, sums) adds the group to the sums of `count` rows.
template <long TileRows, class Zero, class Number, class Make>
void multiply_groups(const LowBit& weight, const LowBitRows& rows, const Number* x, const Zero* x_sums,
                     const float* scales, Zero stored_zero, int num_threads, const Make& make) {
  const long groups = weight.width / weight.group, group_bytes = Group<Zero>::bytes(weight);
  split_evenly(num_threads, (weight.num_columns + kColumns - 1) / kColumns, [&](long panel) {
    alignas(64) float sums[kMaxRows * kColumns];
    auto multiply = make();
    for (long first = 0; first < rows.num_rows; first += kMaxRows) {
      const long num_rows = std::min(kMaxRows, rows.num_rows - first);
      const long num_tiles = (num_rows + TileRows - 1) / TileRows;
      std::fill_n(sums, num_rows * kColumns, 0.0f);
      for (long index = 0; index < groups; ++index) {
        const Group<Zero> group(weight, weight.panels + (panel * groups + index) * group_bytes, stored_zero);
        for (long tile = 0; tile < num_tiles; ++tile) {
          const long row = num_rows * tile / num_tiles, count = num_rows * (tile + 1) / num_tiles - row;
          multiply(count, tile == 0, x + (first + row) * weight.width + index * weight.group, weight.width, group,
                   x_sums ? x_sums + (first + row) * groups + index : nullptr, groups, sums + row * kColumns);
        }
      }
      for (long row = 0; row < num_rows; ++row)
        finish(weight, rows, first + row, panel, sums + row * kColumns, scales ? scales[first + row] : 1.0f);
    }
  });
}

template <long TileRows, class Make>
void multiply_w4a16(const LowBit& weight, const LowBitRows& rows, float stored_zero, int num_threads, const Make& make) {
  std::unique_ptr<float[]> x_sums;
  if (weight.has_zeros || stored_zero != 0) x_sums = sum_groups<float>(weight, rows.x, rows.num_rows, num_threads);
  multiply_groups<TileRows>(weight, rows, rows.x, x_sums.get(), nullptr, stored_zero, num_threads, make);
}

template <class Set>
void multiply_w4a8(const LowBit& weight, const LowBitRows& rows, int num_threads) {
  const Rounded rounded = round_rows(rows, weight.width, 0, num_threads);
  const auto x_sums = sum_groups<std::int32_t>(weight, rounded.values.get(), rows.num_rows, num_threads);
  multiply_groups<Set::kTileRows>(weight, rows, rounded.values.get(), x_sums.get(), rounded.scales.get(), 8,
                                  num_threads, [] { return Set::w4a8; });
}

}  // namespace
}  // namespace tandem::inline TANDEM_SET
