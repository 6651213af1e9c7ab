// Products with weights of 4 bits by the loops of bfloat16 (product.h).
//
// A group is unpacked in the first-level cache, once for all rows of a block.
#pragma once

#include "low_bit_unpack.h"
#include "product.h"

namespace tandem::inline TANDEM_SET {
namespace {

// Rows for a weight of 4 bits. Two bytes are an element.
template <class Sum>
struct GroupedRows {
  const bf16* x;        // [num_rows][width]
  long width;           // in elements
  const Sum* x_sums;    // [num_rows][groups] or null
  const float* scales;  // [num_rows] or null
  Sum stored_zero;
};

// Adds one group, multiplied by its scales, to all sums of a block.
template <class Sum>
void add_group(const Group<Sum>& group, const bf16* unpacked, const GroupedRows<Sum>& x, long first, long groups,
               long index, const Products& products, const Rows& rows, long num_rows, float* sums) {
  const long pairs = x.width / 2 / groups;
  alignas(64) Sum group_sums[kRows * kColumns];
  for (long row = 0; row < num_rows; ++row)
    for (long i = 0; i < kColumns; ++i)
      group_sums[row * kColumns + i] = x.x_sums ? -x.x_sums[(first + row) * groups + index] * group.zeros[i] : Sum{0};
  std::fill(group_sums + num_rows * kColumns, group_sums + products.padded(num_rows) * kColumns, Sum{0});
  multiply(rows.from(first, index * pairs), num_rows, unpacked, pairs, group_sums);
  for (long row = 0; row < num_rows; ++row)
    for (long i = 0; i < kColumns; ++i)
      sums[row * kColumns + i] += static_cast<float>(group_sums[row * kColumns + i]) * group.scales[i];
}

// Multiplies by a weight of 4 bits. unpack(group, to) writes a piece of a panel.
template <class Sum, class Unpack>
void multiply_unpacked(const LowBit& weight, const LowBitRows& rows, const GroupedRows<Sum>& x, int num_threads,
                       const Unpack& unpack) {
  const long groups = weight.width / weight.group, group_bytes = Group<Sum>::bytes(weight);
  const long num_panels = (weight.num_columns + kColumns - 1) / kColumns, pairs = x.width / 2 / groups;
  run_with_rows(x.x, rows.num_rows, x.width, num_threads, [&](long thread, long threads, const Rows& from) {
    alignas(64) bf16 unpacked[kMaxGroup * kColumns];
    alignas(64) float sums[kRows * kColumns];
    const Products products(rows.num_rows, std::min(16L, pairs));
    for (long panel = num_panels * thread / threads; panel < num_panels * (thread + 1) / threads; ++panel)
      for (long first = 0; first < rows.num_rows; first += products.block_rows()) {
        const long num_rows = std::min(products.block_rows(), rows.num_rows - first);
        std::fill_n(sums, num_rows * kColumns, 0.0f);
        for (long index = 0; index < groups; ++index) {
          const Group<Sum> group(weight, weight.panels + (panel * groups + index) * group_bytes, x.stored_zero);
          unpack(group, unpacked);
          add_group(group, unpacked, x, first, groups, index, products, from, num_rows, sums);
        }
        for (long row = 0; row < num_rows; ++row)
          finish(weight, rows, first + row, panel, sums + row * kColumns, x.scales ? x.scales[first + row] : 1.0f);
      }
  });
}

void multiply_w4a16_unpacked(const LowBit& weight, const LowBitRows& rows, int num_threads) {
  std::unique_ptr<float[]> x_sums;
  constexpr float kStoredZero = LowBitProducts::kStoredZero;
  if (weight.has_zeros || kStoredZero != 0)
    x_sums = sum_groups<float>(weight, rows.x, rows.num_rows, num_threads);
  const GroupedRows<float> x{rows.x, weight.width, x_sums.get(), nullptr, kStoredZero};
  multiply_unpacked(weight, rows, x, num_threads, unpack_to_bf16);
}

}  // namespace
}  // namespace tandem::inline TANDEM_SET
